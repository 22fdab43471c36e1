"""Teachers behind somebody else's API; nothing here imports an SDK before a teacher is opened."""
