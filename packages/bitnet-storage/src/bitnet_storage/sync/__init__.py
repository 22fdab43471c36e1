"""Between the working folder and the durable place: push, pull, snapshots, the lease."""
