"""Evaluation: quality on held-out documents, baselines, speed, memory, and the index that joins them."""
