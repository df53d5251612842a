"""What is measured: AR@K and time per stage."""
