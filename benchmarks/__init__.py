"""What mtpack takes, beside what else does the same: `python -m benchmarks.compare --help`."""
