"""The teachers: one folder each, and what they share in `common`."""
