"""Raw shards in the teacher's tokens → KD shards in the student's: `project` takes the way that `route` finds."""
