"""Logging in, and sending with what that brought."""
