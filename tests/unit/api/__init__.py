"""What is asked of the server, and what its answers mean."""
