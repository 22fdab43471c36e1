"""The greedy baseline: what the teacher answers at temperature 0, and how fast."""
