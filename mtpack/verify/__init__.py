"""Checks of shards: that their structure is sound, and that their loss is the mean over turns.

In: `Shards`, and a device. Out: a `VerifyReport`, which has the value and the tolerance of each
check. docs/verifying.md says what is proven and what is not.
"""
