"""The accounts.beat app."""

from django.apps import AppConfig


class BeatConfig(AppConfig):
    """Adds the hourly entries to beat's schedule by a migration. Has no models."""

    name = "accounts.beat"
    label = "accounts_beat"
