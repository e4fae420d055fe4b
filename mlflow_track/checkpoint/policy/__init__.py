"""Policies for saving, keeping and stopping: pure functions of the moment and the history."""
