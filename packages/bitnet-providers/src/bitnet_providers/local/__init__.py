"""The local teacher: a causal language model on this machine, through transformers."""
