"""Live objects to tensors and JSON, and back; no pickle on any path."""
