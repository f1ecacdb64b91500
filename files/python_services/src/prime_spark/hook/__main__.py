"""`python -m prime_spark.hook` is prime-spark-hook: so the service starts the process of a run."""

import sys

from prime_spark.hook.cli import main

sys.exit(main())
