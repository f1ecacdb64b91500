"""Kafka: client options, the ingest consumer, dead letters and cluster administration."""
