"""Write columns to Arrow files, read them again, and manage the output folder that holds them.

In: `Columns`. Out: shard files, the manifest, and `open_shards`, which reads them without a copy.
docs/format.md describes the format.
"""
