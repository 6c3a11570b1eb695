"""The tests. Each folder says in its first line what belongs there."""
