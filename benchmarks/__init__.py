"""Benchmarks of speed and robustness; see README.md."""
