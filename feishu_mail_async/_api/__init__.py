"""Wire rules: what is asked of the API, and what an answer means.

Pure: no clock, no event loop, no I/O.
"""
