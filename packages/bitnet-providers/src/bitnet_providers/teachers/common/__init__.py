"""What several teachers share: keys and addresses, HTTP errors, and the normaliser of their answers."""
