"""A benchmark of ways to merge a content LoRA and a style LoRA."""

__version__ = "0.1.0"
