"""The command line: in this process, and as a program where a signal or a terminal makes the difference."""
