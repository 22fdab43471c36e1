"""Training: `loop.train` from KD traces to checkpoints."""
