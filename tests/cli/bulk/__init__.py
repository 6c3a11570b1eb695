"""Runs and lists of drafts at the command line: what they read, say, send and leave behind."""
