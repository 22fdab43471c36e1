"""Benchmarks: what a model is scored by beside the held-out traces, each a plugin. Student and teacher go one way."""
