"""What a run tells while it works, and what it says when it stops."""
