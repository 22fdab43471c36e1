"""What several teachers share: keys and addresses, HTTP errors, and the log-probabilities of their answers."""
