"""Text to token shards, and shards to batches (`loader`)."""
