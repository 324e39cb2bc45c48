"""Merges: several adapters are combined into one."""
