"""Exit 0 when the named part is healthy. Airflow's own checks start a second Airflow each time."""

import json
import sys
import urllib.request

URLS = {
    "api-server": "http://127.0.0.1:8080/api/v2/version",
    # Answers 503 without a heartbeat.
    "scheduler": "http://127.0.0.1:8974/health",
    # It listens nowhere; the API server knows its heartbeat.
    "dag-processor": "http://api-server:8080/api/v2/monitor/health",
}

part = sys.argv[1]
with urllib.request.urlopen(URLS[part], timeout=4) as answer:
    if part == "dag-processor":
        sys.exit(json.load(answer)["dag_processor"]["status"] != "healthy")
