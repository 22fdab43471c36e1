"""What names a completion: the request and the number of its sample."""

Key = tuple[str, int]
"""What a completion is known by: the digest of its request, and which draw of it this is."""
