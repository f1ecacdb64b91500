"""Large language models: one client for OpenAI-compatible servers, routing, response cache."""
