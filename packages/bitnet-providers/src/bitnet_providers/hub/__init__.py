"""Models of the Hugging Face Hub by name."""
