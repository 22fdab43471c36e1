"""The collection: what to ask, asking it within limits and budget, and writing raw shards."""
