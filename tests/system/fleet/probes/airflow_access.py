"""Airflow's API: what it answers a stranger, a wrong password, and the operator.

Argument: address and port. The password is read where it lies.
"""

import json
import sys
import urllib.error
import urllib.request

SECRET = "/opt/prime-spark/stack/airflow/config/airflow/secret/passwords.json"


def ask(path, token="", body=None):
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{sys.argv[1]}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}


with open(SECRET, encoding="utf-8") as stream:
    password = json.load(stream)["admin"]
wrong, _ = ask("/auth/token", body={"username": "admin", "password": password[:-1]})
_, answer = ask("/auth/token", body={"username": "admin", "password": password})
dags = "/api/v2/dags"
status, found = ask(dags, answer["access_token"])
seen = {"stranger": ask(dags)[0], "wrong password": wrong, "operator": status}
print(json.dumps({**seen, "dags": [dag["dag_id"] for dag in found["dags"]]}))
