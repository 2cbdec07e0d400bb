"""What people see: the report of a run, figures of an output, single sequences, proofs.

In: a `PackReport`, `Shards` or a `VerifyReport`. Out: text in a terminal, or values for `--json`.
"""
