"""What somebody who may asks a server, each time on a new connection: the seconds that each took.

Arguments: kind, host:port or URL, for how many seconds to go on, and the seconds after which a
request has failed. Needs what the service's release has that is asked for.
"""

import asyncio
import base64
import json
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

KIND, TARGET = sys.argv[1:3]
SECONDS, PATIENCE = map(float, sys.argv[3:])
HOST, _, PORT = TARGET.rpartition(":")
CONFIG = Path("/etc/prime-spark")
PROMETHEUS = Path("/opt/prime-spark/stack/monitoring/config/prometheus/secret/password")


def redis() -> None:
    """Log in as the collector and ping."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    password = (CONFIG / "telemetry/credentials/redis_password").read_text().strip()
    login = {"username": "telemetry", "password": password, "socket_timeout": PATIENCE}
    with Redis(host=HOST, port=int(PORT), retry=Retry(NoBackoff(), 0), **login) as client:
        assert client.ping()


def kafka() -> None:
    """Log in as the collector and ask for the partitions of its topic."""
    from kafka import KafkaProducer

    password = (CONFIG / "telemetry/credentials/kafka_password").read_text().strip()
    producer = KafkaProducer(
        bootstrap_servers=TARGET,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username="telemetry",
        sasl_plain_password=password,
        max_block_ms=int(PATIENCE * 1000),
    )
    try:
        assert producer.partitions_for("edge.telemetry")
    finally:
        producer.close(timeout=1)


def postgres() -> None:
    """Log in as the API and select."""
    import asyncpg

    async def select() -> None:
        password = (CONFIG / "api/credentials/database_password").read_text().strip()
        connection = await asyncpg.connect(
            host=HOST,
            port=int(PORT),
            user="prime_spark_api",
            password=password,
            database="prime_spark",
            timeout=PATIENCE,
        )
        try:
            assert await connection.fetchval("SELECT 1", timeout=PATIENCE) == 1
        finally:
            await connection.close(timeout=PATIENCE)

    asyncio.run(select())


def http() -> None:
    """GET; at Prometheus and Alertmanager with the password of their own clients."""
    headers = {}
    if PROMETHEUS.exists():
        login = b"prime-spark:" + PROMETHEUS.read_bytes().strip()
        headers = {"Authorization": f"Basic {base64.b64encode(login).decode()}"}
    request = urllib.request.Request(TARGET, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE) as answer:
        assert answer.status == 200


ask: Callable[[], None] = {"redis": redis, "kafka": kafka, "postgres": postgres, "http": http}[KIND]
began, took = time.monotonic(), []
while (started := time.monotonic()) < began + SECONDS:
    ask()
    took.append(time.monotonic() - started)
    time.sleep(0.1)
print(json.dumps(took))
