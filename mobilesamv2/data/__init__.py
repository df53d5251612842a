"""Data sets, training samples, and readers and writers of their files."""
