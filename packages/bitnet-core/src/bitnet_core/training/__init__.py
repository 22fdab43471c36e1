"""Training: one readable loop on plain torch."""
