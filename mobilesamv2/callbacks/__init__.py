"""Lightning callbacks, loggers and plugins of training runs."""
