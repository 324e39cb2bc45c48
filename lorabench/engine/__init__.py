"""Artifacts, store, processes and devices; knows nothing of diffusion."""
