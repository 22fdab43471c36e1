"""Teachers that speak OpenAI's wire format: OpenAI, AIMLAPI, Groq, and every server that copies them."""
