#!/bin/sh
# Run a Kafka node: kafka-server-start.sh server.properties [--override property=value...]
set -eu

[ $# -gt 0 ] || { echo "usage: $0 server.properties [--override property=value]*" >&2; exit 1; }

base=$(cd "$(dirname "$0")/.." && pwd)

logging=$base/config/log4j2.yaml
[ -f "$logging" ] || logging=$base/default/log4j2.yaml

: "${KAFKA_HEAP_OPTS:=-Xms1G -Xmx1G}"
: "${KAFKA_JVM_PERFORMANCE_OPTS:=-server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 \
-XX:InitiatingHeapOccupancyPercent=35 -XX:+ExplicitGCInvokesConcurrent}"
# Without memory a broker only pretends to live: let it end and be started again.
KAFKA_JVM_PERFORMANCE_OPTS="$KAFKA_JVM_PERFORMANCE_OPTS -XX:+ExitOnOutOfMemoryError"
: "${KAFKA_LOG4J_OPTS:=-Dlog4j2.configurationFile=$logging}"
export KAFKA_HEAP_OPTS KAFKA_JVM_PERFORMANCE_OPTS KAFKA_LOG4J_OPTS

exec "$base/bin/kafka-run-class.sh" kafka.Kafka "$@"
