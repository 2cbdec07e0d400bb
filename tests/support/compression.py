"""Bytes compressed as an input file may be."""

import pyarrow as pa


def compress_zst(*frames: bytes) -> bytes:
    """Return zstd frames, one after the other."""
    compressed = []
    for frame in frames:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(frame)
        compressed.append(sink.getvalue().to_pybytes())
    return b"".join(compressed)
