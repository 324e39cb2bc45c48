"""Views of a run: W&B, csv files or none. The results are in the store and the run folder; a view can be deleted."""
