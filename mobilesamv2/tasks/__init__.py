"""Lightning modules: what a Trainer runs."""
