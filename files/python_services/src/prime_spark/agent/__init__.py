"""The Spark agent: executes voice and language tasks that the dispatcher hands it."""
