#!/usr/bin/env python
"""Django's command line for this project."""

import os
import sys


def main() -> None:
    """Run a management command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    from django.core.management import execute_from_command_line

    from project.start import failure_reported, one_line

    with one_line(), failure_reported():
        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
