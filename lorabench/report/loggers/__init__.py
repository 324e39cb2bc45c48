"""Views of a run: W&B, csv files or none. The store and the run folder are the record; a view may be thrown away."""
