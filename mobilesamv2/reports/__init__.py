"""Results to tables and pictures."""
