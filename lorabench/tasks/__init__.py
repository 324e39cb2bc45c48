"""What `task=` runs: the benchmark, and the commands beside it."""
