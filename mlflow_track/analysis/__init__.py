"""Readers of records."""
