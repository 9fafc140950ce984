"""Evaluation and prediction: how an image is shown to a network, how the answer is scored, what is written."""
