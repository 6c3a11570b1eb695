"""The commands, one module each: parse, call, print.

The docstring of a command is its `--help` text.
"""
