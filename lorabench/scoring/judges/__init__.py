"""Judges: they answer questions about generated images, by the world's ground truth or by a vision-language model."""
