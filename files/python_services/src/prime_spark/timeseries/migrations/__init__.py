"""SQL migrations, applied in the order of their names by `prime_spark.timeseries.migrate`."""
