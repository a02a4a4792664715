"""Huey 3.5: one consumer process with its own scheduler. Its queue is in the project's PostgreSQL."""
