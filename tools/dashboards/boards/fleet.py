"""Fleet & VPN: the hosts, the network between them, and the NAS."""

from __future__ import annotations

from tools.dashboards.builder import Dashboard, Panel, Prom, Row
from tools.dashboards.common import (
    BUSY,
    FREE,
    HOST,
    HOSTS,
    UP,
)

FLEET = Dashboard(
    uid="prime-spark-fleet",
    title="Fleet & VPN",
    description="The hosts, the network between them, and the NAS.",
    variables=[HOSTS],
    rows=[
        Row(
            "Hosts",
            [
                Panel(
                    "CPU in use",
                    [Prom(f"host:cpu_busy:ratio{{{HOST}}}", "{{host}}")],
                    unit="percentunit",
                    maximum=1,
                    thresholds=BUSY,
                    width=8,
                ),
                Panel(
                    "Memory in use",
                    [Prom(f"host:memory_used:ratio{{{HOST}}}", "{{host}}")],
                    unit="percentunit",
                    maximum=1,
                    thresholds=BUSY,
                    width=8,
                ),
                Panel(
                    "Load, per core",
                    [
                        Prom(
                            f"max by (host) (node_load5{{{HOST}}}) / count by (host)"
                            f' (node_cpu_seconds_total{{mode="idle",{HOST}}})',
                            "{{host}}",
                        )
                    ],
                    width=8,
                    thresholds=[(1, "orange"), (2, "red")],
                ),
                Panel(
                    "Disk available",
                    [Prom(f"host:disk_available:ratio{{{HOST}}}", "{{host}} {{mountpoint}}")],
                    "bargauge",
                    "percentunit",
                    maximum=1,
                    thresholds=FREE,
                ),
                Panel(
                    "Network",
                    [
                        Prom(
                            f'sum by (host) (rate(node_network_receive_bytes_total{{device!="wg0",{HOST}}}[$__rate_interval]))',
                            "{{host}} in",
                        ),
                        Prom(
                            f'sum by (host) (rate(node_network_transmit_bytes_total{{device!="wg0",{HOST}}}[$__rate_interval]))',
                            "{{host}} out",
                        ),
                    ],
                    unit="Bps",
                ),
                Panel(
                    "Clock",
                    [
                        Prom(
                            f"node_time_seconds{{{HOST}}} - timestamp(node_time_seconds{{{HOST}}})",
                            "{{host}}",
                        )
                    ],
                    unit="s",
                    minimum=None,
                    description="How far the host's clock is from Prometheus's.",
                ),
                Panel(
                    "Failed units",
                    [
                        Prom(
                            f'sum by (host) (node_systemd_unit_state{{state="failed",{HOST}}})',
                            "{{host}}",
                        )
                    ],
                    decimals=0,
                    thresholds=[(1, "red")],
                ),
            ],
        ),
        Row(
            "VPN",
            [
                Panel(
                    "Since the last handshake",
                    [
                        Prom(
                            f"time() - (prime_spark_wireguard_latest_handshake_seconds{{{HOST}}} > 0)",
                            "{{host}} to {{peer}}",
                        )
                    ],
                    unit="s",
                    thresholds=[(180, "orange"), (300, "red")],
                    description="WireGuard makes a new one every two minutes.",
                ),
                Panel(
                    "Traffic by peer",
                    [
                        Prom(
                            f"rate(prime_spark_wireguard_received_bytes_total{{{HOST}}}[$__rate_interval])",
                            "{{host}} from {{peer}}",
                        ),
                        Prom(
                            f"rate(prime_spark_wireguard_sent_bytes_total{{{HOST}}}[$__rate_interval])",
                            "{{host}} to {{peer}}",
                        ),
                    ],
                    unit="Bps",
                ),
            ],
        ),
        Row(
            "NAS and containers",
            [
                Panel(
                    "NAS answers",
                    [Prom("prime_spark_nas_responding", "{{host}}")],
                    "state-timeline",
                    minimum=None,
                    names={"0": ("no", "red"), "1": ("yes", "green")},
                    width=8,
                ),
                Panel(
                    "Containers",
                    [Prom(f"prime_spark_container_running{{{HOST}}}", "{{host}} {{container}}")],
                    "state-timeline",
                    minimum=None,
                    names=UP,
                    width=8,
                ),
                Panel(
                    "Container restarts",
                    [
                        Prom(
                            f"sum by (host, container) (prime_spark_container_restarts_total{{{HOST}}})",
                            "{{host}} {{container}}",
                        )
                    ],
                    width=8,
                    decimals=0,
                ),
            ],
        ),
    ],
)
