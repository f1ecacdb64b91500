"""The telemetry collector: psutil samples, buffered on disk, shipped to Kafka in order."""
