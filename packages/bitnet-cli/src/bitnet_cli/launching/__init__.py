"""Workers that tasks are handed out to: processes here, or Ray's."""
