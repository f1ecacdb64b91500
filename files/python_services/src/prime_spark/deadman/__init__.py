"""The dead-man receiver: raises its own alarm when the monitoring's heartbeat stops."""
