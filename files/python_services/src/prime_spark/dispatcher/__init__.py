"""prime-spark-dispatcher: takes waiting tasks to agents."""
