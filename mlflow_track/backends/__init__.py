"""The destinations of a run: one module or package each, behind one protocol."""
