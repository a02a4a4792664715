"""The admin: the face for operators and support. Rows are read here, and changed through the services only."""

from accounts.admin import accounts, notices, runs

__all__ = ["accounts", "notices", "runs"]
