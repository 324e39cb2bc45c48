"""Pretraining of the shipped micro SDXL and its scorers on the microworld: `python -m lorabench.micro --help`."""
