"""Merges: how adapters become one thing."""
