"""Single sends at the command line, as a program of its own where that makes a difference."""
