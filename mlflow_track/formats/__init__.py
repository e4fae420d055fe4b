"""Files of other trackers, as bytes: the records in them, and the checksums of those."""
