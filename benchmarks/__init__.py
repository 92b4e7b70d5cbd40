"""Measurements of the helper and its client against stock Tahoe-LAFS, on one grid: `python -m benchmarks`."""
