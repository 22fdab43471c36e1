"""What `bitnet serve` is made of: requests read, one model that answers them in turn, answers in OpenAI's shape."""
