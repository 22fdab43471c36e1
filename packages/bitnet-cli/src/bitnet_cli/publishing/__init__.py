"""A run's exports and traces as repositories of the Hugging Face Hub: which files, and their cards."""
