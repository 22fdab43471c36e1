"""``bitnet_json``: facts of a sentence as JSON with given keys."""
