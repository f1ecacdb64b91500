"""Ask Prometheus or Alertmanager on this host, with the password that its own clients use.

Arguments: service, URL path. Prints {"status": ..., "body": ...} of it with the password, and the
status without as "anonymous".
"""

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request

service, path = sys.argv[1:3]
directory = f"/opt/prime-spark/stack/monitoring/config/{service}/secret"
with open(f"{directory}/password", encoding="utf-8") as stream:
    word = base64.b64encode(b"prime-spark:" + stream.read().strip().encode()).decode()
said = subprocess.run(
    ["docker", "compose", "--project-name", "monitoring", "port", service]
    + [{"prometheus": "9090", "alertmanager": "9093"}[service]],
    capture_output=True,
    text=True,
    check=True,
)
base = f"http://{said.stdout.strip()}"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(headers):
    try:
        with opener.open(urllib.request.Request(base + path, headers=headers), timeout=20) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


status, body = get({"Authorization": f"Basic {word}"})
print(json.dumps({"status": status, "body": body, "anonymous": get({})[0]}))
