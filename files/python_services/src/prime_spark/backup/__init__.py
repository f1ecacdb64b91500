"""Backups: the database to any second, copies of other data, stored by restic."""
