"""The web hook: signed deliveries start playbook runs."""
