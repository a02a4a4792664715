"""The settings of the process that compares: with the apps of every engine, for their tables and their messages."""

from comparison.settings import *  # noqa: F403
