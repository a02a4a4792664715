"""Temporary servers and databases, a sample of accounts, and the demo. Not installed in production."""

SCRATCH = "compare_paths_"
"""The prefix of the name of every scratch database."""
