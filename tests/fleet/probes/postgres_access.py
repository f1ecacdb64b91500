"""Who may log in to PostgreSQL over TCP, and do what there: {attempt: "allowed" or SQLSTATE}.

Arguments: address, port. Needs asyncpg. Passwords are read where they lie on the database's host.
"""

import asyncio
import json
import sys
from pathlib import Path

import asyncpg

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
PASSWORDS = {
    "postgres": Path("/opt/prime-spark/stack/timescale/config/timescale/secret/postgres_password"),
    "prime_spark_owner": Path("/etc/prime-spark/db/credentials/owner"),
    "prime_spark_ingest": Path("/etc/prime-spark/ingest/credentials/database_password"),
}
INGEST = "prime_spark_ingest"
ROW = "INSERT INTO device_metrics VALUES (now(), 'fleet-test-access', 'none', 0)"


def password(user: str) -> str:
    return PASSWORDS[user].read_text().strip()


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
    database = "prime_spark"
    results = {}
    for user in PASSWORDS:
        results[f"{user}, right password"] = await attempt(user, password(user), database)
        results[f"{user}, wrong password"] = await attempt(user, password(user)[::-1], database)
    results["ingest without a password"] = await attempt(INGEST, "", database)
    results["superuser in its own database"] = await attempt(
        "postgres", password("postgres"), "postgres"
    )
    results["ingest in another database"] = await attempt(INGEST, password(INGEST), "postgres")
    for name, sql in {
        "inserts": ROW,
        "updates": "UPDATE device_metrics SET value = 0 WHERE device_id = 'fleet-test-access'",
        "deletes": "DELETE FROM device_metrics WHERE device_id = 'fleet-test-access'",
        "creates a table": "CREATE TABLE public.fleet_test ()",
        "reads the users": "SELECT rolpassword FROM pg_authid",
        "runs a program": "COPY (SELECT 1) TO PROGRAM 'true'",
    }.items():
        results[f"ingest {name}"] = await attempt(INGEST, password(INGEST), database, sql)
    return results


print(json.dumps(asyncio.run(main())))
