#!/usr/bin/env bash
# Exit 0 when the named part is healthy. Airflow's own checks start a second Airflow each time; this
# starts no other program.
set -eu
case "$1" in
api-server)
    host=127.0.0.1 port=8080 path=/api/v2/version body=''
    ;;
scheduler)
    # Answers 503 without a heartbeat.
    host=127.0.0.1 port=8974 path=/health body=''
    ;;
dag-processor)
    # It listens nowhere; the API server knows its heartbeat.
    host=api-server port=8080 path=/api/v2/monitor/health body='"dag_processor":{"status":"healthy"'
    ;;
esac
exec 3<>"/dev/tcp/$host/$port"
printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$path" "$host" >&3
# Up to the end: it fails there, and when there is none in time.
IFS='' read -r -d '' -t 4 answer <&3 || true
[[ $answer == HTTP/1.?' 200 '* && $answer == *"$body"* ]]
