"""Who may log in to PostgreSQL over TCP, and do what there: {attempt: "allowed" or SQLSTATE}.

Arguments: address, port. Needs asyncpg. Users are tried whose passwords lie on the host.
"""

import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
STACK = Path("/opt/prime-spark/stack")
PASSWORDS = {
    "postgres": STACK / "timescale/config/timescale/secret/postgres_password",
    "prime_spark_owner": Path("/etc/prime-spark/db/credentials/owner"),
    "prime_spark_ingest": Path("/etc/prime-spark/ingest/credentials/database_password"),
    "prime_spark_api": Path("/etc/prime-spark/api/credentials/database_password"),
    "prime_spark_exporter": STACK / "exporters/config/postgres-exporter/secret/password",
    "prime_spark_pipeline": STACK / "airflow/config/airflow/secret/database_password",
    "prime_spark_airflow": STACK / "airflow/config/airflow/secret/sql_alchemy_conn",
    "prime_spark_reader": STACK / "monitoring/config/grafana/secret/timescale_password",
}
USERS = [user for user, path in PASSWORDS.items() if path.exists()]
# Whose database is another one than everybody's.
DATABASES = {"prime_spark_airflow": "airflow"}
INSERT = "INSERT INTO device_metrics VALUES (now(), 'fleet-test-access', 'none', 0)"
EVERYBODY = {
    "creates a table": "CREATE TABLE public.fleet_test ()",
    "makes a large object": "SELECT lo_create(0)",
    "reads the verifiers": "SELECT rolpassword FROM pg_authid",
    "runs a program": "COPY (SELECT 1) TO PROGRAM 'true'",
    "updates": "UPDATE device_metrics SET value = 0 WHERE device_id = 'fleet-test-access'",
    "deletes": "DELETE FROM device_metrics WHERE device_id = 'fleet-test-access'",
    "inserts": INSERT,
    "reads": "SELECT 1 FROM device_metrics LIMIT 1",
    "reads the memory": "SELECT 1 FROM memory LIMIT 1",
    "changes the memory": "DELETE FROM memory WHERE key = 'fleet-test-access'",
}


def password(user: str) -> str:
    text = PASSWORDS[user].read_text().strip()
    return str(urlsplit(text).password) if "://" in text else text


async def attempt(user: str, secret: str | None, database: str, sql: str = "SELECT 1") -> str:
    """Run a statement in a transaction that is undone."""
    try:
        connection = await asyncpg.connect(
            host=ADDRESS, port=PORT, user=user, password=secret, database=database, timeout=10
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return str(getattr(error, "sqlstate", error))
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(sql)
        await transaction.rollback()
    except asyncpg.PostgresError as error:
        return str(error.sqlstate)
    finally:
        await connection.close()
    return "allowed"


async def main() -> dict[str, str]:
    results = {}
    for user in USERS:
        right, database = password(user), DATABASES.get(user, "prime_spark")
        results[f"{user}, right password"] = await attempt(user, right, database)
        results[f"{user}, wrong password"] = await attempt(user, right[::-1], database)
        results[f"{user}, no password"] = await attempt(user, "", database)
        results[f"{user}, another database"] = await attempt(
            user, right, "prime_spark" if user in DATABASES else "postgres"
        )
        if user not in ("postgres", "prime_spark_owner", *DATABASES):
            for what, sql in EVERYBODY.items():
                results[f"{user} {what}"] = await attempt(user, right, database, sql)
    return results


print(json.dumps(asyncio.run(main())))
