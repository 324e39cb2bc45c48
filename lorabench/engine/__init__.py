"""Artifacts, store, processes and devices; independent of diffusion models."""
