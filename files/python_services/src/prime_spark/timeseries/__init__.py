"""TimescaleDB: the schema with its migrations, and the writer of events."""
