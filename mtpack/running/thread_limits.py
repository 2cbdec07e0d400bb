"""One thread a process: what says so to the libraries that would start more.

The worker processes use the cores, and a process that has threads can't be forked. This module
imports nothing, since the libraries read it when they are imported.
"""

from __future__ import annotations

ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FASTOKENS_BPE_THREADS": "1",
}
"""Environment variables: numpy's linear algebra, of which there is none to do; `tokenizers`, twice;
`fastokens`, whose threads on busy cores make it half as fast (70 MB/s a core, not 145)."""
