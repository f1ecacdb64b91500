"""What every service shares at run time: start, stop, health, logs, metrics."""
