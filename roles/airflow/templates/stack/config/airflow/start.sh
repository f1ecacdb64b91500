#!/bin/sh
# Start one of Airflow's processes. The scheduler migrates the metadata, the others wait for it.
set -eu
case "$1" in
scheduler)
    airflow db migrate
    # Of the release only the package itself: what it imports is in the image.
    mkdir -p /tmp/python
    ln -sfn "$PRIME_SPARK_PACKAGE" /tmp/python/prime_spark
    ;;
*)
    airflow db check-migrations --migration-wait-timeout 240
    ;;
esac
if [ "$1" = api-server ]; then
    install -m 0600 /config/secret/passwords.json /tmp/passwords.json
fi
exec airflow "$@"
