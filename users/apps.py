"""The users app."""

from django.apps import AppConfig


class UsersConfig(AppConfig):
    """The project's own user model. ``accounts`` works with any other."""

    name = "users"
    default_auto_field = "django.db.models.BigAutoField"
