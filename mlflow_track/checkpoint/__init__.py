"""Checkpoints: when to save, what to keep, how state becomes files, where they live."""
