"""Claude through Anthropic's own SDK: text only."""
