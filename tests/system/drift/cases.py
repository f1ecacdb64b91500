"""Changes behind a run's back: one of every kind of thing that each role manages.

Each case says on which host it is planted, by which script, what `make drift` then has to say of
which role, and which script shows the thing. What that script prints has to differ after the change
and to be the same again after the run: the proof is not the probe's own word.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.system.fleet.fleet import members

(HUB,) = members("kafka")
(CLOUD,) = members("timescale")
(NAS,) = members("nas_server")
(AGENT,) = members("spark_agent")
(OFFSITE,) = members("deadman")


class Case(NamedTuple):
    """One change by hand; ``says`` is what drift has to name, ``round`` those planted together."""

    name: str
    host: str
    role: str
    plant: str
    says: str
    show: str
    round: int = 1


def state(path: str) -> str:
    """Shows kind, mode, owner and content of a path."""
    return f"stat -c '%F %a %u %g' {path}; readlink {path} || sha256sum < {path}"


def listing(path: str) -> str:
    """Shows what lies below a directory, with modes and owners."""
    return f"find {path} -printf '%P %y %m %u\\n' | sort"


def unit(name: str) -> str:
    """Shows whether a unit runs and is enabled, and what changes it."""
    properties = "ActiveState,UnitFileState,DropInPaths,FragmentPath,NeedDaemonReload,Environment"
    return f"systemctl show --property {properties} {name}"


def containers(project: str) -> str:
    """Shows the containers of a project: image, definition, state."""
    definition = '{{index .Config.Labels "com.docker.compose.config-hash"}}'
    shown = f"{{{{.Name}}}} {{{{.Config.Image}}}} {definition} {{{{.State.Status}}}}"
    return (
        f"docker ps --all --quiet --filter label=com.docker.compose.project={project} | xargs"
        f" docker inspect --format '{shown}' | sort"
    )


def drop_in(directory: str, name: str, section: str, line: str) -> str:
    """Add a drop-in to a unit, and have the unit use it."""
    return (
        f"mkdir --parents {directory}/{name}.d;"
        f" printf '[{section}]\\n{line}\\n' > {directory}/{name}.d/x.conf;"
        f" systemctl daemon-reload; systemctl restart {name}"
    )


IMAGE_OF_REDIS = "$(docker inspect --format '{{.Config.Image}}' redis-redis-1)"
STACK = "/opt/prime-spark/stack"
CREDENTIALS = "/etc/prime-spark/kafka-admin/credentials"
# The administration command, given another configuration than the role's.
KAFKA = (
    "python3 - <<'END'\nimport json\n"
    "c = json.load(open('/etc/prime-spark/kafka-admin/config.json'))\n"
    "{change}\njson.dump(c, open('/run/drift.json', 'w'))\nEND\n"
    f"CREDENTIALS_DIRECTORY={CREDENTIALS} /opt/prime-spark/services/kafka-admin/current/bin/"
    "prime-spark-kafka-admin --config /run/drift.json apply; rm /run/drift.json"
)
ASK_KAFKA = (
    f"CREDENTIALS_DIRECTORY={CREDENTIALS} /opt/prime-spark/services/kafka-admin/current/bin/"
    "prime-spark-kafka-admin --config /etc/prime-spark/kafka-admin/config.json apply --check"
)
SQL = (
    "docker compose --project-name timescale exec -T --user postgres timescale psql --no-psqlrc"
    ' --quiet --tuples-only --no-align {database} --command "{statement}"'
)
RIGHTS = "select grantee, table_name, privilege_type from information_schema.role_table_grants"


def sql(statement: str, database: str = "prime_spark") -> str:
    return SQL.format(database=database, statement=statement)


def other_compose(project: str, change: str) -> str:
    """Recreate a project's containers from a definition that ``change``, sed's script, made."""
    return (
        f"cd {STACK}/{project} && sed '{change}' compose.yml > /run/drift.yml && docker compose"
        f" --project-name {project} --project-directory {STACK}/{project} --file /run/drift.yml"
        " --env-file .env up --detach --quiet-pull; rm /run/drift.yml"
    )


CASES = (
    # --- files, directories, links
    Case(
        "content", OFFSITE, "telemetry", "echo >> /etc/prime-spark/telemetry/config.json",
        "content of /etc/prime-spark/telemetry/config.json",
        state("/etc/prime-spark/telemetry/config.json"),
    ),
    Case(
        "mode", HUB, "dispatcher", "chmod 0666 /etc/prime-spark/dispatcher/config.json",
        "owner or mode of /etc/prime-spark/dispatcher/config.json",
        state("/etc/prime-spark/dispatcher/config.json"),
    ),
    Case(
        "owner", HUB, "api", "chown nobody /etc/prime-spark/api/config.json",
        "owner or mode of /etc/prime-spark/api/config.json",
        state("/etc/prime-spark/api/config.json"),
    ),
    Case(
        "deleted", CLOUD, "cli", "rm /etc/prime-spark/cli/config.json",
        "/etc/prime-spark/cli/config.json is missing", state("/etc/prime-spark/cli/config.json"),
    ),
    Case(
        "foreign credential", CLOUD, "ingest",
        "echo x > /etc/prime-spark/ingest/credentials/extra",
        "/etc/prime-spark/ingest/credentials/extra is not ours",
        listing("/etc/prime-spark/ingest/credentials"),
    ),
    Case(
        "foreign file in a project", HUB, "redis", f"touch {STACK}/redis/extra.yml",
        f"{STACK}/redis/extra.yml is not ours", listing(f"{STACK}/redis"),
    ),
    Case(
        "link in place of a file", HUB, "cli",
        "ln -sf /dev/null /etc/bash_completion.d/prime-spark",
        "/etc/bash_completion.d/prime-spark is no regular file",
        state("/etc/bash_completion.d/prime-spark"),
    ),
    Case(
        "mode of a directory", HUB, "kafka", f"chmod 0777 {STACK}/kafka",
        f"owner or mode of {STACK}/kafka", f"stat -c %a {STACK}/kafka",
    ),
    Case(
        "directory removed", AGENT, "telemetry", "rm -r /etc/prime-spark/telemetry/credentials",
        "/etc/prime-spark/telemetry/credentials is missing",
        listing("/etc/prime-spark/telemetry/credentials"),
    ),
    Case(
        "release link moved", HUB, "telemetry",
        "ln -sfn /nowhere /opt/prime-spark/services/telemetry/current",
        "link /opt/prime-spark/services/telemetry/current",
        "readlink /opt/prime-spark/services/telemetry/current",
    ),
    Case(
        "release incomplete", OFFSITE, "deadman",
        "rm $(readlink -f /opt/prime-spark/services/deadman/current)/.complete",
        r"\.complete is missing",
        "ls $(readlink -f /opt/prime-spark/services/deadman/current)/.complete",
    ),
    Case(
        "rules", HUB, "hook", "echo >> /etc/prime-spark/hook/rules.yml",
        "content of /etc/prime-spark/hook/rules.yml", state("/etc/prime-spark/hook/rules.yml"),
    ),
    # --- units
    Case(
        "stopped socket", HUB, "hook", "systemctl stop prime-spark-hook-run.socket",
        "prime-spark-hook-run.socket is inactive", unit("prime-spark-hook-run.socket"),
    ),
    Case(
        "stopped", AGENT, "node_exporter", "systemctl stop prime-spark-node-exporter.service",
        "prime-spark-node-exporter.service is inactive", unit("prime-spark-node-exporter.service"),
    ),
    Case(
        "disabled", CLOUD, "telemetry", "systemctl disable prime-spark-telemetry.service",
        "prime-spark-telemetry.service is disabled", unit("prime-spark-telemetry.service"),
    ),
    Case(
        "masked", CLOUD, "docker", "systemctl mask docker.service", "docker.service is masked",
        "systemctl show --property UnitFileState docker.service",
    ),
    Case(
        "unmasked", OFFSITE, "node_exporter",
        "systemctl unmask prometheus-node-exporter.service",
        "prometheus-node-exporter.service is not masked",
        "systemctl show --property UnitFileState prometheus-node-exporter.service",
    ),
    Case(
        "edited and restarted", AGENT, "llm_server",
        "sed -i 's/^\\[Service\\]/[Service]\\nEnvironment=BY=hand/'"
        " /etc/systemd/system/prime-spark-llm-server.service; systemctl daemon-reload;"
        " systemctl restart prime-spark-llm-server.service",
        "content of /etc/systemd/system/prime-spark-llm-server.service",
        unit("prime-spark-llm-server.service"),
    ),
    Case(
        "drop-in", AGENT, "spark_agent",
        drop_in("/etc/systemd/system", "prime-spark-agent.service", "Service", "Environment=BY=x"),
        "drop-in /etc/systemd/system/prime-spark-agent.service.d/x.conf",
        unit("prime-spark-agent.service"),
    ),
    Case(
        "drop-in until the next boot", CLOUD, "timescale",
        drop_in("/run/systemd/system", "prime-spark-db-maintain.timer", "Timer", "Persistent=yes"),
        "drop-in /run/systemd/system/prime-spark-db-maintain.timer.d/x.conf",
        unit("prime-spark-db-maintain.timer"),
    ),
    # --- packages, accounts, kernel settings
    Case(
        "package removed", AGENT, "spark_agent", "dpkg --force-depends --remove espeak-ng",
        "package espeak-ng is not installed",
        "dpkg-query --show --showformat='${Status}' espeak-ng",
    ),
    Case(
        "group changed", AGENT, "nas", "groupmod --gid 12345 prime-spark-nas",
        "group prime-spark-nas is changed", "getent group prime-spark-nas",
    ),
    Case(
        "user changed", NAS, "nas_server", "usermod --shell /bin/sh spark-nas",
        "user spark-nas is changed", "getent passwd spark-nas",
    ),
    Case(
        "kernel setting", HUB, "common", "sysctl --quiet --write net.ipv4.ip_nonlocal_bind=0",
        "`sysctl .*` prints otherwise", "sysctl net.ipv4.ip_nonlocal_bind",
    ),
    # --- containers
    Case(
        "container stopped", HUB, "exporters",
        "docker stop --time 1 exporters-redis-exporter-1",
        "container redis-exporter is exited", containers("exporters"),
    ),
    Case(
        "container removed", CLOUD, "exporters",
        "docker rm --force exporters-postgres-exporter-1",
        "container postgres-exporter is missing", containers("exporters"),
    ),
    Case(
        "container paused", CLOUD, "monitoring", "docker pause monitoring-alertmanager-1",
        "container alertmanager is paused", containers("monitoring"),
    ),
    Case(
        "container of another definition", HUB, "redis",
        other_compose("redis", "s/^    restart:.*/    restart: \"no\"/"),
        "container redis has another definition", containers("redis"), 2,
    ),
    Case(
        "container of another image", HUB, "exporters",
        other_compose(
            "exporters",
            f"s#image: .*#image: '\"{IMAGE_OF_REDIS}\"'#",
        ),
        "container redis-exporter (has another definition|is )", containers("exporters"), 2,
    ),
    Case(
        "container of a stranger", CLOUD, "monitoring",
        "docker create --name stranger --label com.docker.compose.project=monitoring"
        " --label com.docker.compose.service=stranger $(docker inspect --format"
        " '{{.Config.Image}}' monitoring-alertmanager-1)",
        "container stranger is not ours", containers("monitoring"), 2,
    ),
    Case(
        "configuration of a container", HUB, "redis",
        f"echo 'maxclients 77' >> {STACK}/redis/config/redis/redis.conf;"
        " docker restart redis-redis-1",
        f"content of {STACK}/redis/config/redis/redis.conf",
        state(f"{STACK}/redis/config/redis/redis.conf")
        + "; cat /proc/$(pgrep -o redis-server)/limits | grep 'open files'",
    ),
    Case(
        "definition of a project", CLOUD, "airflow", f"echo '# x' >> {STACK}/airflow/compose.yml",
        f"content of {STACK}/airflow/compose.yml", state(f"{STACK}/airflow/compose.yml"),
    ),
    Case(
        "environment of a project", CLOUD, "timescale", f"chmod 0644 {STACK}/timescale/.env",
        f"owner or mode of {STACK}/timescale/.env", state(f"{STACK}/timescale/.env"),
    ),
    Case(
        "rules that are read again", CLOUD, "monitoring",
        f"rm {STACK}/monitoring/config/prometheus/rules/hosts.yml;"
        " docker kill --signal HUP monitoring-prometheus-1",
        f"{STACK}/monitoring/config/prometheus/rules/hosts.yml is missing",
        state(f"{STACK}/monitoring/config/prometheus/rules/hosts.yml"),
    ),
    Case(
        "foreign rules", CLOUD, "monitoring",
        f"echo 'groups: []' > {STACK}/monitoring/config/prometheus/rules/extra.yml",
        f"{STACK}/monitoring/config/prometheus/rules/extra.yml is not ours",
        listing(f"{STACK}/monitoring/config/prometheus/rules"), 2,
    ),
    Case(
        "DAG", CLOUD, "airflow",
        f"echo '# x' >> {STACK}/airflow/config/airflow/dags/edge_to_cloud_sync.py",
        "content of .*/edge_to_cloud_sync.py",
        state(f"{STACK}/airflow/config/airflow/dags/edge_to_cloud_sync.py"),
    ),
    Case(
        "Docker's configuration", HUB, "docker",
        "sed -i 's/{/{\"debug\": true,/' /etc/docker/daemon.json",
        "content of /etc/docker/daemon.json", state("/etc/docker/daemon.json"), 2,
    ),
    Case(
        "image of the model server", OFFSITE, "llm_server",
        "rm --recursive --force /opt/prime-spark/llm_server/*",
        "/opt/prime-spark/llm_server/.* is missing", "ls /opt/prime-spark/llm_server",
    ),
    # --- Kafka
    Case(
        "topic changed", HUB, "kafka",
        KAFKA.format(
            change="c['topics']['edge.telemetry']['configs']['retention.ms'] = '604700000'"
        ),
        "retention.ms", ASK_KAFKA,
    ),
    Case(
        "right removed, another added", HUB, "kafka",
        KAFKA.format(
            change="c['acls'] = c['acls'][1:] + [{'principal': 'User:telemetry',"
            " 'resource_type': 'TOPIC', 'name': 'analytics.events', 'operations': ['READ']}]"
        ),
        "(?i)allow .* on TOPIC edge.telemetry", ASK_KAFKA, 2,
    ),
    # --- database
    Case(
        "password of a database user", CLOUD, "timescale",
        sql("alter role prime_spark_reader password 'by-hand'"), "password of prime_spark_reader",
        sql("select md5(rolpassword) from pg_authid where rolname = 'prime_spark_reader'"),
    ),
    Case(
        "membership", CLOUD, "timescale", sql("grant pg_monitor to prime_spark_reader"),
        "prime_spark_reader is no member of pg_monitor",
        sql("select member::regrole, roleid::regrole from pg_auth_members order by 1, 2"),
    ),
    Case(
        "limit of a database user", CLOUD, "timescale",
        sql("alter role prime_spark_reader reset statement_timeout"),
        "statement_timeout of prime_spark_reader",
        sql("select setrole::regrole, unnest(setconfig) from pg_db_role_setting order by 1, 2"),
    ),
    Case(
        "large objects for everybody", CLOUD, "timescale",
        sql("grant execute on function lo_create(oid) to public"), "large objects in prime_spark",
        sql("select proacl from pg_proc where proname = 'lo_create'"),
    ),
    Case(
        "right in the database", CLOUD, "timescale",
        sql("revoke select on device_metrics from prime_spark_reader"), "(?i)device_metrics|SELECT",
        sql(f"{RIGHTS} where grantee = 'prime_spark_reader' order by 1, 2, 3"), 2,
    ),
    # --- VPN
    Case(
        "peer removed", HUB, "wireguard", "wg set wg0 peer $(wg show wg0 peers | tail -1) remove",
        "peer .* of wg0", "wg show wg0 allowed-ips | sort",
    ),
    Case(
        "foreign peer", CLOUD, "wireguard",
        "wg set wg0 peer $(wg genkey | wg pubkey) allowed-ips 10.90.8.99/32", "peer .* of wg0",
        "wg show wg0 allowed-ips | sort",
    ),
    Case(
        "addresses of a peer", AGENT, "wireguard",
        "wg set wg0 peer $(wg show wg0 peers) allowed-ips 10.90.8.0/25", "peer .* of wg0",
        "wg show wg0 allowed-ips", 2,
    ),
    Case(
        "MTU", OFFSITE, "wireguard", "ip link set wg0 mtu 1300", "the MTU of wg0",
        "cat /sys/class/net/wg0/mtu",
    ),
    Case(
        "route", AGENT, "wireguard", "ip route delete 10.90.8.0/24 dev wg0", "the routes of wg0",
        "ip route show dev wg0",
    ),
    Case(
        "interface stopped", OFFSITE, "wireguard", "systemctl stop wg-quick@wg0.service",
        "wg-quick@wg0.service is inactive|wg0: it is not there",
        "systemctl is-active wg-quick@wg0.service; systemctl is-enabled wg-quick@wg0.service", 2,
    ),
    Case(
        "interface disabled", CLOUD, "wireguard", "systemctl disable wg-quick@wg0.service",
        "wg-quick@wg0.service is disabled", "systemctl is-enabled wg-quick@wg0.service", 2,
    ),
    Case(
        "configuration of the VPN", CLOUD, "wireguard", "echo '# x' >> /etc/wireguard/wg0.conf",
        "the configuration of wg0", state("/etc/wireguard/wg0.conf"), 2,
    ),
    Case(
        "mode of the key", AGENT, "wireguard", "chmod 0644 /etc/wireguard/private.key",
        "/etc/wireguard/private.key is changed", state("/etc/wireguard/private.key"),
    ),
    Case(
        "rules flushed", HUB, "wireguard", "nft delete table ip prime_spark_vpn_guard",
        "`nft .*` prints otherwise", "nft --stateless --terse list table ip prime_spark_vpn_guard",
    ),
    Case(
        "rule added", OFFSITE, "wireguard",
        "nft insert rule ip prime_spark_vpn_guard prerouting accept", "`nft .*` prints otherwise",
        "nft --stateless --terse list table ip prime_spark_vpn_guard",
    ),
    Case(
        "forwarding of the hub", HUB, "wireguard",
        "iptables --wait --delete FORWARD -i wg0 -o wg0 -j ACCEPT", "forwarding of wg0",
        "iptables --wait --check FORWARD -i wg0 -o wg0 -j ACCEPT && echo there", 2,
    ),
    # --- NAS
    Case(
        "automount stopped", AGENT, "nas", "systemctl stop mnt-nas.automount",
        "mnt-nas.automount is inactive", "systemctl is-active mnt-nas.automount",
    ),
    Case(
        "mount edited", HUB, "nas",
        "sed -i 's/^\\[Mount\\]/[Mount]\\nSloppyOptions=no/' /etc/systemd/system/mnt-nas.mount;"
        " systemctl daemon-reload",
        "content of /etc/systemd/system/mnt-nas.mount",
        state("/etc/systemd/system/mnt-nas.mount")
        + "; systemctl show --property NeedDaemonReload mnt-nas.mount",
    ),
    Case(
        "key of a client removed", NAS, "nas", f"rm /etc/ssh/prime-spark-nas/{AGENT}.pub",
        f"/etc/ssh/prime-spark-nas/{AGENT}.pub is missing",
        state(f"/etc/ssh/prime-spark-nas/{AGENT}.pub"),
    ),
    Case(
        "foreign key", NAS, "nas", "cp /etc/hostname /etc/ssh/prime-spark-nas/stranger.pub",
        "/etc/ssh/prime-spark-nas/stranger.pub is not ours",
        listing("/etc/ssh/prime-spark-nas"), 2,
    ),
    Case(
        "SSH of the NAS", NAS, "nas_server",
        "echo '# x' >> /etc/ssh/sshd_config.d/30-prime-spark-nas.conf",
        "content of /etc/ssh/sshd_config.d/30-prime-spark-nas.conf",
        state("/etc/ssh/sshd_config.d/30-prime-spark-nas.conf"),
    ),
    # --- the record itself
    Case(
        "file together with its record", CLOUD, "ingest",
        "python3 - <<'END'\nimport hashlib, json\n"
        "path = '/etc/prime-spark/ingest/config.json'\n"
        "text = open(path).read().replace('\"max_wait_ms\"', '\"max_wait_ms\" ')\n"
        "open(path, 'w').write(text)\ndigest = hashlib.sha256(text.encode()).hexdigest()\n"
        "record = '/var/lib/prime-spark/roles/ingest.json'\nm = json.load(open(record))\n"
        "m['things']['tree']['service-ingest']['files'][path][0] = digest\n"
        "json.dump(m, open(record, 'w'))\nEND",
        "its record was made with other secrets", state("/etc/prime-spark/ingest/config.json"), 2,
    ),
)  # fmt: skip
