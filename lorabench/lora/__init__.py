"""Adapters as data, the masked layer that applies them, and their files."""
