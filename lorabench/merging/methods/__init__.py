"""Merges, one per file. lorabench.merging.method explains methods and how to add one."""
