"""What the teacher said, on the disk: the journal, the ledger, the raw shard, and chats brought from elsewhere."""
