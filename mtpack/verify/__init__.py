"""Proofs on shards: their structure, and that their loss is the mean over turns.

In: `Shards`, and a device. Out: a `VerifyReport`, which names each check with its value and its
tolerance. docs/verifying.md says what is proved and what is not.
"""
