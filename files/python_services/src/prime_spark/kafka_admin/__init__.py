"""prime-spark-kafka-admin: topics, users and ACLs."""
