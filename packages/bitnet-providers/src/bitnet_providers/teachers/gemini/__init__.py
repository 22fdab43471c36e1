"""Gemini through Google's own SDKs, the current one and the retired one."""
