"""How fast merges are learned; see README.md."""
