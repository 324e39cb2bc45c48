"""Scorers: one file per kind of backbone, each with its own preprocessing. `files` finds them, `load` loads them."""
