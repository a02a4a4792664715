"""The admin, for operators and support. It reads rows, and changes them through the services only."""

from accounts.admin import accounts, decisions, notices, runs

__all__ = ["accounts", "decisions", "notices", "runs"]
