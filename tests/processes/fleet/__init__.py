"""The work queue across machines: real PostgreSQL, real HTTP, real processes, real signals."""
