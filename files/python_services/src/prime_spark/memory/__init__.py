"""Where the fleet keeps what it has to remember."""
