"""The Spark agent: so far its health and metrics."""
