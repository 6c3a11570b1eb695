"""The sandbox, which judges the client, and its pytest plugin: they must be right first."""
