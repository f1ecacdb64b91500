"""Connect to each host:port: {target: "open" or the error}."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor


def attempt(target: str) -> str:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        return str(error)
    return "open"


with ThreadPoolExecutor() as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(attempt, sys.argv[1:]), strict=True))))
