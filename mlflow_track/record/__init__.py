"""The folder of a run, and nothing about who reads it."""
