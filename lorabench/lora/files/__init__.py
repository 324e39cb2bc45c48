"""LoRA files of the SDXL family: one reader for every naming convention, one writer for two of them."""
