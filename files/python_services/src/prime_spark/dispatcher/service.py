"""prime-spark-dispatcher: gives the tasks in Redis to the agents."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prime_spark.config import service_main
from prime_spark.dispatcher.dispatcher import Dispatcher
from prime_spark.dispatcher.settings import DispatcherConfig
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.service import run_service


def run(config: DispatcherConfig) -> int:
    """Run the dispatcher; return the exit status."""
    configure_logging("dispatcher", config.log_level)
    return run_service(lambda service: Dispatcher(config).run(service))


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return service_main(
        "prime-spark-dispatcher",
        "Give the tasks in Redis to the agents, and see each through to its end.",
        DispatcherConfig,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
