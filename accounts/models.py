"""The models: accounts with a trial, their events, the runs that expired them, mails, and operators' decisions.

Change accounts through ``accounts.services``; ``accounts.delivery`` sends the mails.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Case, F, Q, Value, When
from django.db.models.expressions import Combinable
from django.db.models.functions import Now
from django.utils import timezone

from accounts.slices import FIRST

EARLIEST_END = datetime.min.replace(tzinfo=UTC)
LATEST_END = datetime.max.replace(tzinfo=UTC)
"""PostgreSQL also stores moments before and after these, and ``infinity``, which Python cannot represent."""

CLOCKS_MAY_DIFFER = timedelta(minutes=5)
"""The most that the clock of a process that starts a run may differ from the database's."""


def grace_cutoff(now: datetime) -> datetime:
    """Trials that ended before this moment are past their grace at ``now``."""
    return now - timedelta(days=settings.TRIAL_GRACE_DAYS)


def grace_end(trial_ends_at: datetime) -> datetime:
    """The last moment of the grace of a trial that has ended."""
    return trial_ends_at + timedelta(days=settings.TRIAL_GRACE_DAYS)


def ended_before(cutoff: datetime) -> Q:
    """Trials that ended before ``cutoff``, except those of ``off_calendar``. ``access.status_at`` says it in Python."""
    return Q(trial_ends_at__gte=EARLIEST_END, trial_ends_at__lt=cutoff)


if TYPE_CHECKING:
    DateTimeField = models.DateTimeField[str | datetime | Combinable | None, datetime]
else:
    DateTimeField = models.DateTimeField


class DerivedDateTimeField(DateTimeField):
    """A moment that the model's method ``default_FIELD`` computes when the row is stored without one.

    A field's ``pre_save`` also works for ``bulk_create``, which does not call a model's ``save()``.
    """

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        """Set the default when the value is missing."""
        if getattr(model_instance, self.attname) is None:
            setattr(model_instance, self.attname, getattr(model_instance, f"default_{self.attname}")())
        return super().pre_save(model_instance, add)


class ExpiryRunQuerySet(models.QuerySet["ExpiryRun"]):
    """Queries of runs."""

    def last_success(self) -> "ExpiryRun | None":
        """The successful run as of the latest moment, if there is one, served by its index."""
        return self.filter(status=ExpiryRun.Status.SUCCEEDED).order_by("as_of", "pk").last()

    def succeeded_since(self, moment: datetime, *, now: datetime) -> "ExpiryRun | None":
        """The latest successful run as of ``moment`` or later, if there is one.

        Ignores runs as of a moment after ``now`` plus ``CLOCKS_MAY_DIFFER``: the clock of such a run was wrong.
        """
        return self.filter(as_of__gte=moment, as_of__lte=now + CLOCKS_MAY_DIFFER).last_success()


class ExpiryRun(models.Model):
    """One run of ``expire_trials``, a row of the ledger.

    ``as_of`` is the moment the rule was applied to, from the caller's clock. ``cutoff`` is computed from it once: every
    slice uses it, whatever ``TRIAL_GRACE_DAYS`` its worker has. ``started``, ``heartbeat`` and ``finished`` come from
    the database's clock, so that one clock measures a run on several hosts.

    The counts are written in the transactions that they count, so for every run, at every moment::

        expired_count = accounts that point to it + undone_count + accounts extended one by one since

    An account that pays or is cancelled still points to the run. One that is extended or undone is on trial and points
    to none. A deleted account counts like an extended one.
    """

    class Path(models.TextChoices):
        """The two ways to run."""

        COMMAND = "command"
        CELERY = "celery"

    class Status(models.TextChoices):
        """The state of a run."""

        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        REFUSED = "refused"
        INTERRUPTED = "interrupted"
        UNDONE = "undone"

    path = models.CharField(max_length=10, choices=Path)
    status = models.CharField(max_length=12, choices=Status, default=Status.RUNNING)
    as_of = models.DateTimeField(help_text="Trials that had ended, grace included, by this moment were due.")
    cutoff = DerivedDateTimeField(
        blank=True,
        help_text="Trials that ended before this moment were due: as of, less the grace at that time.",
    )
    started = models.DateTimeField(db_default=Now())
    heartbeat = models.DateTimeField(
        db_default=Now(), help_text="When the run, or the undo of it, last committed a slice."
    )
    finished = models.DateTimeField(null=True, blank=True)
    floor = models.DateTimeField(
        "looked from",
        null=True,
        blank=True,
        help_text="Trials that ended before this moment were not looked at: earlier runs were done with them. Empty: "
        "the run looked at all.",
    )
    due_count = models.PositiveBigIntegerField(
        "due",
        default=0,
        help_text="Accounts that were due when the run began. Counted up to a million; more than that are counted as "
        "they expire.",
    )
    expired_count = models.PositiveBigIntegerField("expired", default=0, help_text="Accounts that this run expired.")
    slice_count = models.PositiveIntegerField("slices", default=0, help_text="Slices that it has committed.")
    slice_size = models.PositiveIntegerField(
        default=FIRST,
        db_default=FIRST,
        help_text="Accounts in its next slice, so many that they stay locked for a tenth of a second.",
    )
    batch_size = models.PositiveIntegerField(
        null=True, blank=True, help_text="Accounts in every slice, as its caller asked. Empty: it learns the number."
    )
    throttle = models.FloatField(
        default=0, db_default=0, help_text="After each slice, a pause of so many times as long as it took."
    )
    skipped = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Whether accounts may have been left out because another transaction had locked them. The next run "
        "looks at them again.",
    )
    jobs = models.PositiveSmallIntegerField(
        default=1,
        db_default=1,
        help_text="Threads of one process that ran its slices at the same time, each over a database connection of its "
        "own. Celery's worker processes are not counted.",
    )
    longest_slice = models.DurationField(default=timedelta, help_text="The longest any account stayed locked.")
    error = models.TextField(blank=True)
    host = models.CharField(max_length=255, blank=True)
    task_id = models.CharField(
        "task id", max_length=255, blank=True, help_text="Celery's id of the task that started the run."
    )
    undone_count = models.PositiveBigIntegerField(
        "undone",
        default=0,
        db_default=0,  # workers of the previous release insert runs without this column until they are replaced
        help_text="Accounts that an undo of this run put back on trial.",
    )
    undone_at = models.DateTimeField(null=True, blank=True, help_text="When the run was first undone.")
    undone_by = models.CharField(max_length=255, blank=True, db_default="", help_text="Who undid it first.")

    objects = ExpiryRunQuerySet.as_manager()

    class Meta:
        get_latest_by = "started"
        indexes: ClassVar = [
            # Serves succeeded_since(), which the fallback and monitoring call.
            models.Index(fields=["as_of"], condition=Q(status="succeeded"), name="accounts_run_succeeded"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(path__in=["command", "celery"]),
                name="accounts_run_path_known",
            ),
            models.CheckConstraint(
                condition=Q(status__in=["running", "succeeded", "failed", "refused", "interrupted", "undone"]),
                name="accounts_run_status_known",
            ),
            models.CheckConstraint(
                condition=Q(status="running", finished=None) | (~Q(status="running") & Q(finished__isnull=False)),
                name="accounts_run_finished_unless_running",
            ),
            models.CheckConstraint(
                condition=Q(undone_count__lte=F("expired_count")), name="accounts_run_undone_what_it_expired"
            ),
        ]
        permissions: ClassVar = [("undo_expiryrun", "Can undo expiry run")]

    def __str__(self) -> str:
        return f"run {self.pk} by {self.path}, {self.status}"

    @property
    def size(self) -> int:
        """How many accounts its next slice should have."""
        return self.batch_size or self.slice_size

    def default_cutoff(self) -> datetime:
        """``as_of`` minus the grace."""
        return grace_cutoff(self.as_of)


class AccountQuerySet(models.QuerySet["Account"]):
    """Queries of accounts by the trial rule."""

    def due(self, now: datetime) -> Self:
        """Trialing accounts whose trial ended more than ``TRIAL_GRACE_DAYS`` before ``now``.

        This is the only definition of the rule. An account that was never extended is due when it was created more than
        ``TRIAL_DAYS + TRIAL_GRACE_DAYS`` days before ``now``: 61 days by default; at exactly 61 it is not due yet.
        """
        return self.due_before(grace_cutoff(now))

    def due_before(self, cutoff: datetime) -> Self:
        """Trialing accounts whose trial ended before ``cutoff``. A run expires these, by the cutoff it recorded."""
        return self.filter(status=Account.Status.TRIALING).ended_before(cutoff)

    def above(self, mark: datetime | None) -> Self:
        """Accounts whose trial did not end before ``ledger.low_water_mark``; all of them without a mark.

        Dead entries of the accounts that expired stay at the low end of the index until a VACUUM, a million of them
        after a backlog. With the mark a question begins above them.
        """
        return self if mark is None else self.filter(trial_ends_at__gte=mark)

    def first_end(self) -> datetime | None:
        """The earliest end of these trials, None when there is none; reads the first entry of the index.

        Counting takes ten times as long when there is none: PostgreSQL cannot know that few accounts are still trialing
        long after the end of their trial, expects many, and starts parallel workers for them.
        """
        first: datetime | None = self.aggregate(first=models.Min("trial_ends_at"))["first"]
        return first

    def count_to(self, most: int) -> int:
        """How many these trials are, and ``most`` when they are more; reads so many entries of the index."""
        return self.order_by("trial_ends_at")[:most].count()

    def ended_before(self, cutoff: datetime) -> Self:
        """Accounts in any status whose trial ended before ``cutoff``, except those of ``off_calendar``."""
        return self.filter(ended_before(cutoff))

    def with_status_at(self, now: datetime) -> Self:
        """Annotate ``status_now``: the status that a run at ``now`` would leave. ``access.status_at`` in one query."""
        due = When(ended_before(grace_cutoff(now)), status=Account.Status.TRIALING, then=Value(Account.TRIAL_EXPIRED))
        return self.annotate(status_now=Case(due, default=F("status"), output_field=models.CharField()))

    def off_calendar(self) -> Self:
        """Trialing accounts whose trial end is outside the years 1 to 9999. No run can expire them."""
        return self.filter(status=Account.Status.TRIALING).exclude(trial_ends_at__range=(EARLIEST_END, LATEST_END))

    def still_expired_by(self, run: ExpiryRun) -> Self:
        """Accounts that ``run`` expired and that are still expired. An undo puts these back on trial."""
        return self.filter(status=Account.Status.TRIAL_EXPIRED, expiry_run=run)


class Account(models.Model):
    """A customer's account and the state of its trial. Change it through ``accounts.services``."""

    class Status(models.TextChoices):
        """The state of an account. Only TRIALING accounts can expire."""

        EXEMPT = "exempt"
        BETA = "beta"
        TRIALING = "trialing"
        ACTIVE = "active"
        PAST_DUE = "past_due", "Past due"
        CANCELED = "canceled", "Cancelled"  # stored as Stripe spells it
        TRIAL_EXPIRED = "trial_expired", "Trial expired"

    EXEMPT = Status.EXEMPT
    BETA = Status.BETA
    TRIALING = Status.TRIALING
    ACTIVE = Status.ACTIVE
    PAST_DUE = Status.PAST_DUE
    CANCELED = Status.CANCELED
    TRIAL_EXPIRED = Status.TRIAL_EXPIRED

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="account")
    status = models.CharField(max_length=13, choices=Status, default=Status.TRIALING)
    created = models.DateTimeField(default=timezone.now)
    trial_ends_at = DerivedDateTimeField(
        blank=True,
        help_text="Left empty: TRIAL_DAYS after creation. A later change of TRIAL_DAYS does not move it.",
    )
    trial_expired_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="As of when a run moved the account to trial expired."
    )
    expiry_run = models.ForeignKey(
        ExpiryRun,
        on_delete=models.PROTECT,  # the answer to "why was I expired?" outlives any clean-up
        related_name="accounts",
        null=True,
        blank=True,
        editable=False,
        db_index=False,  # the partial index below is smaller, and costs nothing for accounts that never expired
        # Measured: checking the foreign key for every account took 40 % of a run. Only services write this column, with
        # a run just saved, and on_delete protects the run.
        db_constraint=False,
        help_text="The run that expired the account.",
    )

    status_now: str
    """Only in a query ``with_status_at``."""

    objects = AccountQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            # Serves due(), and a run's walk through the due accounts, oldest end first.
            models.Index(
                fields=["trial_ends_at", "id"], condition=Q(status="trialing"), name="accounts_account_trials"
            ),
            # Serves the accounts of a run, and the walk of its undo.
            models.Index(
                fields=["expiry_run", "id"], condition=Q(expiry_run__isnull=False), name="accounts_account_of_run"
            ),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(
                    status__in=["exempt", "beta", "trialing", "active", "past_due", "canceled", "trial_expired"]
                ),
                name="accounts_account_status_known",
            ),
            models.CheckConstraint(
                condition=~Q(status="trialing") | Q(trial_expired_at=None, expiry_run=None),
                name="accounts_account_trialing_not_expired",
            ),
            # PostgreSQL's infinity, and moments before year 1 or after 9999, would fail every query that reads them.
            models.CheckConstraint(
                condition=Q(trial_ends_at__gte=EARLIEST_END, trial_ends_at__lte=LATEST_END),
                name="accounts_account_trial_end_on_calendar",
            ),
        ]

    def __str__(self) -> str:
        return f"account {self.pk}, {self.get_status_display().lower()}"

    def default_trial_ends_at(self) -> datetime:
        """``TRIAL_DAYS`` after creation."""
        return self.created + timedelta(days=settings.TRIAL_DAYS)


class AccountEvent(models.Model):
    """One change of an account by a service, and what the account was before. Rows are added and never changed.

    They are written in the transaction of the change. A run writes none: the account points to the run that expired it
    and, once that pointer was cleared, the event that cleared it has it in ``run``. So the events in the order of their
    keys, and the account's own pointer, are the whole history. Events are deleted with their account.
    """

    class Kind(models.TextChoices):
        """The change."""

        ACTIVATED = "activated"
        EXTENDED = "extended"
        CANCELED = "canceled", "Cancelled"
        UNDONE = "undone", "Put back on trial"

    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="events")
    kind = models.CharField(max_length=9, choices=Kind)
    at = models.DateTimeField(db_default=Now())
    by = models.CharField(max_length=255, blank=True, help_text="Who asked for it. Empty: a call of the service.")
    status_before = models.CharField(max_length=13, choices=Account.Status)
    run = models.ForeignKey(
        ExpiryRun,
        on_delete=models.PROTECT,
        related_name="events",
        null=True,
        blank=True,
        db_index=False,  # the partial index below is smaller
        db_constraint=False,  # copied from Account.expiry_run, where the reason is
        help_text="The run that had expired the account before.",
    )
    ends_before = models.DateTimeField(null=True, blank=True, help_text="The end of the trial before, if it changed.")
    ends_after = models.DateTimeField(null=True, blank=True, help_text="The end of the trial after, if it changed.")

    class Meta:
        indexes: ClassVar = [
            # Serves the accounts that an undo put back, and the protection of the run.
            models.Index(fields=["run"], condition=Q(run__isnull=False), name="accounts_event_run"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(kind__in=["activated", "extended", "canceled", "undone"]), name="accounts_event_kind_known"
            ),
            models.CheckConstraint(
                condition=Q(ends_before__isnull=False, ends_after__isnull=False)
                | (Q(ends_before=None, ends_after=None) & ~Q(kind="extended")),
                name="accounts_event_ends_both_or_none",
            ),
        ]

    def __str__(self) -> str:
        return f"event {self.pk}, account {self.account_id} {self.kind}"


class NoticeQuerySet(models.QuerySet["Notice"]):
    """Queries of notices by their delivery status."""

    def pending(self) -> Self:
        """Notices that are neither sent nor closed, whenever their next attempt is."""
        return self.filter(status=Notice.Status.PENDING)

    def deliverable(self, now: datetime) -> Self:
        """Pending notices whose next attempt is due, those that wait longest first."""
        return self.pending().filter(next_attempt__lte=now).order_by("next_attempt", "pk")


class Notice(models.Model):
    """One mail owed to a customer. A unique constraint on what the mail says prevents that it is owed twice.

    ``queued`` and ``sent`` come from the database's clock, ``claimed`` and ``next_attempt`` from the caller's.
    """

    class Kind(models.TextChoices):
        """The content of the mail."""

        ENDING_SOON = "ending_soon", "Ending soon"
        ENDED = "ended"

    class Status(models.TextChoices):
        """The delivery status of the mail."""

        PENDING = "pending"
        SENT = "sent"
        SKIPPED = "skipped", "Skipped: no longer true"
        GIVEN_UP = "given_up", "Given up"

    account = models.ForeignKey(
        Account,
        on_delete=models.CASCADE,
        related_name="notices",
        db_index=False,  # the unique index below starts with this column
    )
    kind = models.CharField(max_length=11, choices=Kind)
    trial_ends_at = models.DateTimeField(help_text="The end of the trial that the mail speaks of.")
    days_before = models.PositiveSmallIntegerField(
        default=0, help_text="Which reminder: of how many days before the end. 0 for the notice that it has ended."
    )
    status = models.CharField(max_length=8, choices=Status, default=Status.PENDING, db_default=Status.PENDING)
    queued = models.DateTimeField(db_default=Now())
    sent = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(
        default=0,
        db_default=0,
        help_text="How often the mail was refused for good, or may have arrived. Counted before it is sent; an attempt "
        "that failed for a reason that may pass is taken back.",
    )
    claimed = models.DateTimeField(
        null=True,
        blank=True,
        help_text="While pending: since when a process has been sending the mail. It stays when the process dies; the "
        "mail is then tried again at its next attempt.",
    )
    last_error = models.TextField(blank=True, default="", db_default="")
    next_attempt = models.DateTimeField(help_text="While pending: not tried before.")

    objects = NoticeQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            # Serves deliverable(): notices that were sent are not in this index.
            models.Index(
                fields=["next_attempt", "id"], condition=Q(status="pending"), name="accounts_notice_deliverable"
            ),
            # Serve accounts.health: for how long mails wait, and how many were given up lately.
            models.Index(fields=["queued"], condition=Q(status="pending"), name="accounts_notice_waiting"),
            models.Index(fields=["next_attempt"], condition=Q(status="given_up"), name="accounts_notice_given_up"),
            # Serves the admin's lists by status, and metrics, which count them.
            models.Index(fields=["status", "id"], name="accounts_notice_by_status"),
        ]
        constraints: ClassVar = [
            # A rerun, a second beat or a redelivery queues no mail twice; a new trial end queues a new mail.
            models.UniqueConstraint(
                fields=["account", "kind", "trial_ends_at", "days_before"], name="accounts_notice_owed_once"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["pending", "sent", "skipped", "given_up"]), name="accounts_notice_status_known"
            ),
            models.CheckConstraint(
                condition=Q(kind="ending_soon", days_before__gt=0) | Q(kind="ended", days_before=0),
                name="accounts_notice_kind_known",
            ),
            models.CheckConstraint(
                condition=Q(status="sent", sent__isnull=False) | (~Q(status="sent") & Q(sent=None)),
                name="accounts_notice_sent_when_sent",
            ),
            models.CheckConstraint(
                condition=Q(claimed=None) | Q(status="pending"), name="accounts_notice_claimed_while_pending"
            ),
        ]

    def __str__(self) -> str:
        return f"notice {self.pk}, {self.get_kind_display().lower()}, {self.get_status_display().lower()}"


class Decision(models.Model):
    """What an operator decided about the runs, with the reason. Rows are added and never edited: they are the history.

    Written by ``accounts.decisions``. ``at`` comes from the database's clock.
    """

    class Kind(models.TextChoices):
        """What was decided."""

        RUN_NOW = "run_now", "Run now"
        ALLOW = "allow", "Allow once"
        PAUSE = "pause", "Pause"
        RESUME = "resume", "Resume"

    kind = models.CharField(max_length=7, choices=Kind)
    at = models.DateTimeField(db_default=Now())
    by = models.CharField(max_length=255)
    reason = models.CharField(max_length=500)
    until = models.DateTimeField(
        null=True, blank=True, help_text="When a pause ends by itself, or when an allowance that no run used lapses."
    )
    max_accounts = models.PositiveBigIntegerField(
        "at most", null=True, blank=True, help_text="The accounts that one run may expire, whatever its limit is."
    )
    run = models.ForeignKey(
        ExpiryRun,
        on_delete=models.SET_NULL,  # a run that expired none is pruned after a year
        related_name="decisions",
        null=True,
        blank=True,
        help_text="The run that used the allowance, or that was started in the admin's own process.",
    )

    class Meta:
        default_permissions = ("view",)
        permissions: ClassVar = [
            ("run_expiry", "Can run expiry now"),
            ("allow_expiry", "Can allow a refused run once"),
            ("pause_expiry", "Can pause and resume expiry"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(kind="pause", until__isnull=False, max_accounts=None)
                | Q(kind="allow", until__isnull=False, max_accounts__isnull=False)
                | Q(kind__in=["run_now", "resume"], until=None, max_accounts=None),
                name="accounts_decision_has_what_its_kind_needs",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display().lower()}, by {self.by}"
