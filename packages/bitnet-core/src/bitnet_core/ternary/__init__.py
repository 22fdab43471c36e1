"""Ternary linear layers, the quantisers of their weights and inputs, and their packed form."""
