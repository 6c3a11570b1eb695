"""Naive models, and the random histories that the package is held against them in."""
