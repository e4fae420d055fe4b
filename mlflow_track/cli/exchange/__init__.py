"""Commands by which runs and their metrics leave, and come in."""
