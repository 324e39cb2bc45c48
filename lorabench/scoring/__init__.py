"""Scorers: one file a kind of backbone, each with its own preprocessing; `files` finds them, `load` opens them."""
