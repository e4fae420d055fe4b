"""Runs that other trackers have recorded, as ordinary records: what reads each, and one writer."""
