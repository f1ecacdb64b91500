"""Tasks for the fleet's agents: kept in Redis, handed out by the dispatcher."""
