"""The settings of the demo: the project's defaults, and the demo's database."""

from sandbox import demo_database, environment

environment.isolate(inherit=("DEMO_DATABASE",), DATABASE_URL=demo_database.url(), DJANGO_DEBUG="1")

from project.settings import *  # noqa: E402, F403
