"""Object stores: read, write and list objects by their URLs.

In: a URL such as `s3://bucket/folder/rows.jsonl`. Out: bytes, streams, files.

`urls.py` says which names are URLs; nothing else here is imported for local files. The client of a
store is that of fsspec, which an extra of mtpack installs. Credentials come from the environment of
the process, as that client finds them; no function takes any. All errors are OSError, with a line
that says what to do and holds no text of the store.
"""
