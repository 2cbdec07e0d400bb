"""The output of the commands: reports of runs, figures of shards, single sequences, checks.

In: a `PackReport`, `Shards` or a `VerifyReport`. Out: text in a terminal, values for `--json`, or a
page for a browser.
"""
