"""Open an output with the installed version of `datasets`, and compare it with plain pyarrow.

    python tests/support/load_with_datasets.py packed

This is a separate program, since each version of `datasets` to test needs its own environment.
"""

import sys
from pathlib import Path

import datasets
import pyarrow as pa


def main(folder: str) -> None:
    loaded = datasets.load_from_disk(folder)
    tables = [
        pa.ipc.open_stream(pa.memory_map(str(shard))).read_all()
        for shard in sorted(Path(folder).glob("shard-*.arrow"))
    ]
    expected = pa.concat_tables(tables)
    assert loaded.column_names == expected.column_names, loaded.column_names
    assert loaded.num_rows == expected.num_rows > 0
    for number in (0, loaded.num_rows - 1):
        assert loaded[number] == expected.slice(number, 1).to_pylist()[0]
    print(f"datasets {datasets.__version__}: {loaded.num_rows} rows, {loaded.column_names}")


if __name__ == "__main__":
    main(sys.argv[1])
