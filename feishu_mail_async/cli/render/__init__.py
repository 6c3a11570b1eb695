"""Output of the command line: the live line, progress, summaries, and their wording."""
