"""When to save, what to keep, when to stop: pure functions of the moment and the history."""
