"""What a run shows while it works, and why it stopped."""
