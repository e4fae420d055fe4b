"""Data loaders whose place, order and random numbers are part of a checkpoint."""
