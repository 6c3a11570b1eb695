"""The output of the command line: live line, progress, summaries, and their wording."""
