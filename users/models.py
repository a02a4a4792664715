"""The user model."""

from typing import ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models.functions import Upper


class User(AbstractUser):
    """The project's own user model, because replacing ``auth.User`` later needs a difficult migration."""

    class Meta(AbstractUser.Meta):
        indexes: ClassVar = [
            models.Index(Upper("email"), name="users_user_email"),  # serves the admin's search, by iexact
        ]
