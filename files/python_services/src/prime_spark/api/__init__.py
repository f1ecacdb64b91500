"""The fleet's HTTP API: so far its health and metrics."""
