"""prime-spark-ingest: events from Kafka into the database."""
