"""The hook's page: the fleet, runs with their logs and results, and decisions about them."""
