"""Exit 0 when the named part of Airflow is healthy. Its own checks start a second Airflow each time."""

import json
import sys
import urllib.request

PARTS = {
    "api-server": ("http://127.0.0.1:8080/api/v2/version", ""),
    "scheduler": ("http://127.0.0.1:8974/health", "scheduler"),
    # It listens nowhere; the API server sees its heartbeat.
    "dag-processor": ("http://api-server:8080/api/v2/monitor/health", "dag_processor"),
}

url, part = PARTS[sys.argv[1]]
with urllib.request.urlopen(url, timeout=4) as answer:
    state = json.load(answer)
sys.exit(bool(part) and state[part]["status"] != "healthy")
