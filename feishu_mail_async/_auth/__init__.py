"""Where a user's access token comes from, and one request for it at a time."""
