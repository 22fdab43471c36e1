"""A toy teacher that repeats what it is told."""
