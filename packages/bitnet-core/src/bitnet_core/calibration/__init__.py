"""A full-precision checkpoint becomes a ternary student whose layers put out nearly what the checkpoint's do."""
