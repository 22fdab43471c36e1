"""A model on this machine, run by transformers."""
