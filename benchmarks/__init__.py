"""Time and memory of mtpack and of other ways: `python -m benchmarks.compare --help`."""
