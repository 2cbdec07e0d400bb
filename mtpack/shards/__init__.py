"""Columns to Arrow files and back, and the output folder that holds them.

In: `Columns`. Out: shard files, the manifest, and `open_shards`, which reads them without a copy.
docs/format.md describes all of it.
"""
