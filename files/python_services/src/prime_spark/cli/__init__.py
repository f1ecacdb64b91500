"""The command `prime-spark`: the fleet's API from a terminal."""
