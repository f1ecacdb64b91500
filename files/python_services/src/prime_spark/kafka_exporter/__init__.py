"""What a Kafka cluster and its consumer groups do, as metrics named like kafka_exporter's."""
