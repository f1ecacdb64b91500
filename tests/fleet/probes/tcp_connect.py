"""Connect to each host:port: {target: "open" or the error}."""

import json
import socket
import sys


def attempt(target: str) -> str:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        return str(error)
    return "open"


print(json.dumps({target: attempt(target) for target in sys.argv[1:]}))
