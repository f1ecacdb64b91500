"""The fleet's users: names, roles, passwords, and when an account is locked."""
