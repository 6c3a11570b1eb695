"""What the documents say: the READMEs, the examples, the benchmarks."""
