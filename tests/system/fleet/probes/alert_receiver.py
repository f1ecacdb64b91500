"""Alertmanager's web hook: notes each alert as a line of JSON. Arguments: address, file."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

host, _, port = sys.argv[1].rpartition(":")


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(sys.argv[2], "a", encoding="utf-8") as stream:
            for alert in message["alerts"]:
                note = {"at": time.time(), "status": alert["status"], **alert["labels"]}
                stream.write(json.dumps(note) + "\n")
        self.send_response(200)
        self.end_headers()


HTTPServer((host, int(port)), Receiver).serve_forever()
