"""Tokens and money: what a request may cost, what has been spent, and the hard budget."""
