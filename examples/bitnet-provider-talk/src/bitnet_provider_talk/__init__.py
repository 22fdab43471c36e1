"""A teacher behind an HTTP API with a wire format of its own."""
