"""Studies beside the benchmark, chosen by `task=<file>`; each is a file with `run(cfg, folder)`."""
