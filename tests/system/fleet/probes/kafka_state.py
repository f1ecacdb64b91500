"""Topics, users and rights of the cluster, asked as its administrator. Needs kafka-python."""

import json
from pathlib import Path
from typing import Any

from kafka.admin import (
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ConfigResourceType,
    KafkaAdminClient,
    ResourcePatternFilter,
    ResourceType,
)

HOME = Path("/etc/prime-spark/kafka-admin")


def main() -> dict[str, Any]:
    config = json.loads((HOME / "config.json").read_text())
    client = KafkaAdminClient(
        bootstrap_servers=config["bootstrap_servers"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username=config["username"],
        sasl_plain_password=(HOME / "credentials" / config["credential"]).read_text().strip(),
    )
    try:
        topics: dict[str, dict[str, Any]] = {
            topic["name"]: {"partitions": len(topic["partitions"])}
            for topic in client.describe_topics()
            if not topic["name"].startswith("__")
        }
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics]
        answers = client.describe_configs(resources, config_filter="all")["topic"]
        for name, answer in answers.items():
            topics[name]["configs"] = {key: entry["value"] for key, entry in answer.items()}
        everything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
        acls, _ = client.describe_acls(
            ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, everything)
        )
        rights = [
            [
                acl.principal,
                acl.permission_type.name,
                acl.resource_pattern.resource_type.name,
                acl.resource_pattern.pattern_type.name,
                acl.resource_pattern.resource_name,
                acl.operation.name,
                acl.host,
            ]
            for acl in acls
        ]
        users = sorted(client.describe_user_scram_credentials())
    finally:
        client.close()
    return {"topics": topics, "rights": rights, "users": users}


print(json.dumps(main()))
