"""Kafka: clients, producer, consumer, publisher of events."""
