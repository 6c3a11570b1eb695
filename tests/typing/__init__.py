"""The public names: as a type checker sees them, and as an import does."""
