"""Tasks and their agents, as Redis holds them."""
