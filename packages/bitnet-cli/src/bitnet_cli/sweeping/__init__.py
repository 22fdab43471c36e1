"""`bitnet sweep`: runs of one manifest that differ in some settings and share what those don't change."""
