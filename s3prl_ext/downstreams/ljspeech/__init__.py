"""The task LJ Speech."""
