"""Training schemes: how concepts become adapters."""
