"""Temporary servers and databases, a sample of accounts, and the demo. Never installed in production."""

SCRATCH = "compare_paths_"
"""The name of every scratch database begins with this."""
