"""The fleet's HTTP API: logins, memory, tasks, language models, health and metrics."""
