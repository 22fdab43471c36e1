"""Raw shards in the teacher's tokens → KD shards in the student's: `by_id_or_bytes` chooses how, `project` does it."""
