"""prime-spark-api: the fleet's HTTP API. So far it answers /health and /metrics only."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prime_spark.config import service_main
from prime_spark.runtime.asgi import WebConfig, create_app, serve
from prime_spark.runtime.health import Health
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.service import Service, run_service


def run(config: WebConfig) -> int:
    """Run the service; return the exit status."""
    configure_logging("api", config.log_level)
    app = create_app("Prime Spark API", Health("api"))

    async def main_task(service: Service) -> None:
        await serve(app, config.http, service)

    return run_service(main_task)


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return service_main(
        "prime-spark-api",
        "The fleet's HTTP API: so far its health and metrics.",
        WebConfig,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
