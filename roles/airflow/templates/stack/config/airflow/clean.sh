#!/bin/sh
# Remove from the logs and from the metadata what is older than so many days.
set -eu
find /opt/airflow/logs -type f -mtime "+$1" -delete
find /opt/airflow/logs -mindepth 1 -type d -empty -mtime +1 -delete
before=$(date --utc --date "$1 days ago" +%Y-%m-%dT%H:%M:%S+00:00)
# By name, their dependent tables come along: among all tables is `dag`, and a DAG that was not
# parsed for long cannot be removed while a run that is kept refers to its version.
tables=callback,dag_run,import_error,job,log,revoked_token,trigger
# The limit is here because whoever called may be gone while this goes on.
nice -n 10 timeout 25m airflow db clean --yes --skip-archive --error-on-cleanup-failure \
    --tables "$tables" --clean-before-timestamp "$before"
