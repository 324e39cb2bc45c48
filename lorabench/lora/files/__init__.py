"""LoRA files of SDXL, SD3 and FLUX.1: one reader for every naming convention, one writer for two of them."""
