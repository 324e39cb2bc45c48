"""Scorers: one file a backbone, each with its own preprocessing; `load.load_scorers` opens their folders."""
