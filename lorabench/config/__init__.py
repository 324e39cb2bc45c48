"""Schemas of the configuration and the checks of its values."""
