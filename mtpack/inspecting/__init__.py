"""What is in shards, as a person wants to see it: figures, single sequences, decoded text."""
