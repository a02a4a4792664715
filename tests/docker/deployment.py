"""A deployment to test: creates its customers and checks their state."""

from collections.abc import Callable
from dataclasses import dataclass

from sandbox.servers import wait_for

NOT_DUE, PAYING = 7, 5

PSQL = ("psql", "--username=trials", "--no-align", "--tuples-only", "--command")

ADD = """
from datetime import UTC, datetime, timedelta

def add(count, days, status):
    first = User.objects.count()
    users = User.objects.bulk_create(User(username=f"user{first + number}") for number in range(count))
    created = datetime.now(UTC) - timedelta(days=days)
    Account.objects.bulk_create(Account(user=user, status=status, created=created) for user in users)

"""

FIRST_RUN = "SELECT count(*) FROM accounts_expiryrun WHERE status = 'succeeded'"

TICK_EVERY_SECOND = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every_second = IntervalSchedule.objects.create(every=1, period="seconds")
task = PeriodicTask.objects.get(name="Expire trials")
task.crontab, task.interval = None, every_second
task.save()
"""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Containers of the project that share one database."""

    manage_py: Callable[..., str]
    """Runs ``manage.py ARGUMENTS`` in the project's image and returns what it prints."""
    psql: Callable[[str], str]
    """Puts one statement to the database, past the code under test."""

    def shell(self, code: str) -> None:
        self.manage_py("shell", "--command", code)

    def add_due(self, count: int) -> None:
        self.shell(f"{ADD}add({count}, 62, Account.TRIALING)")

    def add_others(self) -> None:
        """Customers whom no run may change: in their last day of trial, and paying."""
        self.shell(f"{ADD}add({NOT_DUE}, 60, Account.TRIALING); add({PAYING}, 62, Account.ACTIVE)")

    def tick_every_second(self) -> None:
        """Edit the schedule, as the admin would."""
        self.shell(TICK_EVERY_SECOND)

    def send_a_run_of_many_messages(self) -> None:
        """Run one slice for every due account, so that a run takes long enough for the test to interrupt it."""
        self.shell("from accounts.tasks import expire_trials; expire_trials.delay(batch_size=1)")

    def expired(self) -> int:
        return int(self.psql("SELECT count(*) FROM accounts_account WHERE status = 'trial_expired'"))

    def wait_until_well(self) -> None:
        """Wait for the run that a new installation makes at its start."""
        wait_for("a first run", lambda: int(self.psql(FIRST_RUN)), seconds=60)
        assert "Trials are being expired" in self.manage_py("check_expiry")

    def succeeded(self) -> int:
        """How many runs expired accounts and succeeded."""
        return int(
            self.psql("SELECT count(*) FROM accounts_expiryrun WHERE status = 'succeeded' AND expired_count > 0")
        )

    def paths(self) -> set[str]:
        """The paths that expired accounts."""
        return set(self.psql("SELECT DISTINCT path FROM accounts_expiryrun WHERE expired_count > 0").split())

    def wait_until_expired(self, count: int) -> None:
        wait_for(f"{count} accounts to expire", lambda: self.expired() >= count, seconds=90)

    def assert_expired_exactly_once(self, count: int) -> None:
        """Assert that ``count`` accounts are expired, that the ledger agrees, and that no other account changed."""
        left = self.psql("SELECT status, count(*) FROM accounts_account GROUP BY status ORDER BY status").split()
        assert left == [f"active|{PAYING}", f"trial_expired|{count}", f"trialing|{NOT_DUE}"]
        assert int(self.psql("SELECT sum(expired_count) FROM accounts_expiryrun")) == count
