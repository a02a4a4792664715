"""Who can sign in."""

from typing import ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models.functions import Upper


class User(AbstractUser):
    """The project's own user model, so that it can grow without a painful migration."""

    class Meta(AbstractUser.Meta):
        indexes: ClassVar = [
            models.Index(Upper("email"), name="users_user_email"),  # serves iexact, by which the admin searches
        ]
