"""The settings of the demo: the project's own as on a machine that has set nothing, and the database of the demo."""

from sandbox import demo_database, environment

environment.isolate(inherit=("DEMO_DATABASE",), DATABASE_URL=demo_database.url(), DJANGO_DEBUG="1")

from project.settings import *  # noqa: E402, F403
