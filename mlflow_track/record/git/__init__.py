"""The code of a run as git knows it: its commit, and what was changed after it."""
