"""Sends records to Weights & Biases, through its own client."""
