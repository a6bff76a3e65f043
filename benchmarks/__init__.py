"""Speed of each part beside a plain implementation of the same, in one run: `python -m benchmarks.NAME`."""
