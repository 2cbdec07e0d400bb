"""Proof that shards are sound and that their loss is the mean over turns."""
