"""``./manage.py erase_user``: delete what is stored about a person; the counts of runs stay."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandError, CommandParser

from accounts import erasure
from accounts.management.base import BAD_INPUT, FAILED, TrialCommand


class Command(TrialCommand):
    help = (
        "Erase the user with this e-mail address: the user, the account with its notices and events, and the name "
        "elsewhere. "
        "Shows what would be deleted and asks for confirmation. "
        "Exit codes: 0 erased, 1 not erased, 2 bad input, such as an unknown address."
    )

    work = "erasure"
    lasting = "Nothing was changed by it; run it again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email", metavar="EMAIL", help="The whole address, in upper or lower case.")
        parser.add_argument("--yes", action="store_true", help="Do not ask for confirmation.")

    def handle(self, *args: Any, email: str, yes: bool = False, **options: Any) -> None:
        model = get_user_model()
        users = list(model._default_manager.filter(**{f"{model.get_email_field_name()}__iexact": email}))
        if not email or not users:
            raise CommandError(f"No user has the e-mail address {email!r}.", returncode=BAD_INPUT)
        for user in users:
            self.show(user)
        if not yes and not confirmed():
            raise CommandError("Nothing was erased. Answer y, or add --yes.", returncode=FAILED)
        for user in users:
            erasure.erase(user=user)
            self.stdout.write("Erased.")

    def show(self, user: Any) -> None:
        """Print what is stored about the user."""
        found = erasure.traces(user=user)
        accounts = ", ".join(str(account) for account in found.accounts) or "no account"
        self.stdout.write(
            f"User {user.pk} ({user.get_username()}): {accounts}; {found.notices.count()} notice(s); "
            f"named in {found.log.count() if found.log is not None else 0} entries of the admin's log, "
            f"as the one who undid {found.undone.count()} run(s), in {found.decisions.count()} decision(s), "
            f"and in {found.events.count()} event(s) of other accounts."
        )


def confirmed() -> bool:
    """Ask on the terminal; False without a terminal."""
    try:
        return input("Erase this for good? [y/N] ").strip().lower() == "y"
    except EOFError:
        return False
