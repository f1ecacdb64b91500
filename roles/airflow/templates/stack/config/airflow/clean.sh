#!/bin/sh
# Remove from the metadata and from the logs what is older than so many days.
set -eu
before=$(date --utc --date "$1 days ago" +%Y-%m-%dT%H:%M:%S+00:00)
airflow db clean --yes --skip-archive --clean-before-timestamp "$before"
find /opt/airflow/logs -type f -mtime "+$1" -delete
find /opt/airflow/logs -mindepth 1 -type d -empty -mtime +1 -delete
