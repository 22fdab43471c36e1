"""Prompts and texts out of the user's files."""
