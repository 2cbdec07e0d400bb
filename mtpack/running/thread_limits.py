"""Environment variables that limit libraries to one thread per process.

The worker processes use the cores, and a process that has threads can't be forked. This module
imports nothing, since libraries read these variables when they are imported.
"""

from __future__ import annotations

SINGLE_THREAD_ENV = {
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FASTOKENS_BPE_THREADS": "1",
}
"""By name: for numpy's linear algebra, which is not used; for `tokenizers`, two; for `fastokens`,
which threads on busy cores slow down to half the speed (70 MB/s per core instead of 145)."""
