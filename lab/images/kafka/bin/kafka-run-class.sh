#!/bin/sh
# Run a class of Kafka: kafka-run-class.sh CLASS [ARGUMENT...]
#
# Obeyed as by Kafka's own script: KAFKA_HEAP_OPTS, KAFKA_JVM_PERFORMANCE_OPTS, KAFKA_LOG4J_OPTS,
# KAFKA_JMX_OPTS, KAFKA_OPTS, CLASSPATH.
set -eu

[ $# -gt 0 ] || { echo "usage: $0 CLASS [ARGUMENT...]" >&2; exit 1; }

base=$(cd "$(dirname "$0")/.." && pwd)

# A configuration directory mounted over ours need not bring a logging configuration.
logging=$base/config/tools-log4j2.yaml
[ -f "$logging" ] || logging=$base/default/tools-log4j2.yaml

# The tools live for a second: a simple collector and no late optimisation start fastest.
: "${KAFKA_HEAP_OPTS:=-Xmx256M}"
: "${KAFKA_JVM_PERFORMANCE_OPTS:=-XX:+UseSerialGC -XX:TieredStopAtLevel=1}"
: "${KAFKA_LOG4J_OPTS:=-Dlog4j2.configurationFile=$logging}"

# Left unquoted on purpose: the variables hold several options.
# shellcheck disable=SC2086
exec java $KAFKA_HEAP_OPTS $KAFKA_JVM_PERFORMANCE_OPTS -Djava.awt.headless=true \
    $KAFKA_LOG4J_OPTS ${KAFKA_JMX_OPTS:-} ${KAFKA_OPTS:-} \
    -cp "$base/libs/*${CLASSPATH:+:$CLASSPATH}" "$@"
