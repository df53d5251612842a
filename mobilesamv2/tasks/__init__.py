"""Lightning modules that train, with their losses and learning-rate schedule."""
