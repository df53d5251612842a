"""Run models over data sets and keep the results."""
