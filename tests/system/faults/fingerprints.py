"""What runs of site.yml have made of the whole fleet, and in what two such states differ."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.system.fleet.fleet import connect, members, probe, query, service_python

Fingerprints = dict[str, dict[str, dict[str, str]]]

ROLES = "SELECT rolname, rolsuper, rolcanlogin, rolcreatedb FROM pg_roles ORDER BY 1"
TABLES = (
    "SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns"
    " WHERE table_schema = 'public' ORDER BY 1, 2, 3"
)
RIGHTS = (
    "SELECT grantee, table_name, privilege_type FROM information_schema.table_privileges"
    " WHERE table_schema = 'public' ORDER BY 1, 2, 3"
)


def take() -> Fingerprints:
    """Of every host what a run decides there, and of Kafka and the database what is in them."""
    names = members("all")

    def one(name: str) -> dict[str, dict[str, str]]:
        return dict(probe(connect(name), "fingerprint", seconds=180))

    with ThreadPoolExecutor(len(names)) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    (broker,) = members("kafka")
    kafka = probe(connect(broker), "kafka_state", python=service_python("kafka-admin"))
    found["Kafka"] = {"state": {what: str(sorted_(seen)) for what, seen in kafka.items()}}
    found["TimescaleDB"] = {
        "state": {
            what: str(query(sql))
            for what, sql in {"roles": ROLES, "tables": TABLES, "rights": RIGHTS}.items()
        }
    }
    return found


def sorted_(value: Any) -> Any:
    """The value without an order of its own."""
    if isinstance(value, dict):
        return {key: sorted_(value[key]) for key in sorted(value)}
    return sorted(map(str, value)) if isinstance(value, list) else value


def differences(before: Fingerprints, after: Fingerprints) -> list[str]:
    """One sentence for each thing that is not the same."""
    found = []
    for host in sorted(before.keys() | after.keys()):
        first, second = before.get(host, {}), after.get(host, {})
        for section in sorted(first.keys() | second.keys()):
            old, new = first.get(section, {}), second.get(section, {})
            found += [
                f"{host}: {name}: {old.get(name, 'not there')} -> {new.get(name, 'not there')}"
                for name in sorted(old.keys() | new.keys())
                if old.get(name) != new.get(name)
            ]
    return found
