"""A simulated fleet: the telemetry of any number of devices, for load and demonstration."""
