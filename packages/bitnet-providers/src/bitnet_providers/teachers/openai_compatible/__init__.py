"""OpenAI and every server that speaks its protocol, through the openai SDK."""
