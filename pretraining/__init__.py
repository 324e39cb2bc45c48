"""Pretraining of the shipped micro SDXL and its scorers on the microworld: `python -m pretraining --help`."""
