"""Sampling rules, one file each; see lorabench.sampling.rule."""
