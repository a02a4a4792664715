"""The scenarios: each knows how to fill its tables, what a turn does there, and how to check what came out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import ClassVar

from accounts.models import Account, Notice
from comparison import access, churn, contenders, faults, measures, sample
from comparison.measurements import Options, Scenario
from comparison.measures import Measure, Turn
from comparison.runners import Failed, Runner
from comparison.sites import own_site
from sandbox.mail_server import Mailbox
from sandbox.scratch import ScratchDatabase
from users.models import User


@dataclass(kw_only=True)
class Workload:
    """A scenario at work: every due account has to be expired, and no other."""

    kind: ClassVar[str]
    title: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    baseline: ClassVar[str] = ""
    tables: ClassVar[str] = "nothing"
    """What they are filled with: a key of ``sample.DUE_OF_PERIOD``, or a name of its own."""
    changes_accounts: ClassVar[bool] = True  # every turn begins with the tables as they were filled
    once: ClassVar[bool] = False  # one round is enough, because it varies little or takes long

    together: ClassVar[bool] = False  # the contenders rest or wait most of the time, and do so side by side

    accounts: int
    runners: Sequence[Runner]
    options: Options
    now: datetime  # the moment the tables are filled for
    logs: Path

    def fill(self) -> None:
        """Fill the empty tables; the users are there."""
        sample.fill_accounts(self.accounts, kind=self.tables, seed=self.options.seed, now=self.now)

    def scenario(self) -> Scenario:
        """Describe it, with the tables filled."""
        due = self.count_due()
        return Scenario(
            name=f"{self.kind}-{self.accounts}",
            kind=self.kind,
            title=self.title.format(due=due, accounts=self.accounts, every=faults.EVERY),
            accounts=self.accounts,
            due=due,
            baseline=self.baseline,
            contenders=tuple(runner.name for runner in self.runners),
        )

    def count_due(self) -> int:
        """How much there is to do."""
        return Account.objects.due(self.now).count()

    def rounds(self, runner: Runner) -> int:
        """How often a contender has its turn."""
        return 1 if self.once else min(self.options.rounds, runner.rounds or self.options.rounds)

    @contextmanager
    def around(self, turn: Turn) -> Iterator[None]:
        """What must be there for a turn, and is not measured; the tables are filled."""
        runner = turn.runner
        with runner.standing(runner.site, logs=self.logs) if runner.keeps_connections else nullcontext():
            if runner.keeps_connections and not self.changes_accounts:
                runner.run()  # the first run is the slowest
            yield

    def perform(self, turn: Turn) -> None:
        """What is measured; raises Failed when it was not done."""
        turn.runner.run()

    def what_is_wrong(self, turn: Turn) -> str:
        """Look at what came out; in words, empty when all is right."""
        part = turn.runner.part and min(turn.runner.part, turn.scenario.due)
        return sample.what_is_wrong(paid=turn.paid, expired=part)


class Expiry(Workload):
    """Customers pay meanwhile."""

    measures = measures.EXPIRY
    baseline = "raw-sql"

    @contextmanager
    def around(self, turn: Turn) -> Iterator[None]:
        turn.customers = sample.customers(seed=self.options.seed)
        with super().around(turn):
            yield


class NothingDue(Expiry):
    """The run that finds nothing to do: most of them."""

    kind = "nothing"
    title = "Nothing due among {accounts:,} accounts"
    changes_accounts = False


class NormalDay(Expiry):
    """One account of a thousand is due."""

    kind = tables = "normal"
    title = "A normal day: {due:,} of {accounts:,} accounts are due"


class Backlog(Expiry):
    """The first run of all, or the first after a long break."""

    kind = tables = "backlog"
    title = "A backlog: {due:,} of {accounts:,} accounts are due"


class DearBacklog(Expiry):
    """A trigger on the table, or a cold disk: slices must not get longer because rows are dear."""

    kind = tables = "dear"
    title = "Each row fifty times as dear: {due:,} of {accounts:,} accounts are due"
    fixed_accounts = 100_000

    def fill(self) -> None:
        super().fill()
        sample.make_updates_dear()


class Churn(Workload):
    """Time goes by, whoever runs it."""

    kind = tables = "churn"
    title = "A month of {accounts:,} accounts: sign-ups, payments, hourly ticks and mails"
    once = True
    measures = ()
    days: ClassVar[int] = churn.MONTH

    @property
    def start(self) -> datetime:
        """When the month begins: it ends now."""
        return self.now - self.days * churn.DAY

    def fill(self) -> None:
        churn.fill(self.accounts, now=self.start)

    @contextmanager
    def around(self, turn: Turn) -> Iterator[None]:
        yield

    def perform(self, turn: Turn) -> None:
        """Live it."""
        with churn.kept(turn.runner):
            month = churn.Month(accounts=self.accounts, start=self.start, vacuums=turn.runner.name == churn.VACUUMED)
            turn.values |= month.live(self.days)

    def what_is_wrong(self, turn: Turn) -> str:
        return churn.what_is_wrong(self.now)


class AfterHalf(Churn):
    """What dead rows do to whoever asks next."""

    kind = tables = "half"
    title = "Right after {due:,} of {accounts:,} accounts expired"

    def fill(self) -> None:
        Workload.fill(self)

    def perform(self, turn: Turn) -> None:
        """Expire them, and ask."""
        with churn.kept(turn.runner):
            turn.values |= churn.after_half(now=self.now, vacuums=turn.runner.name == churn.VACUUMED)
            if wrong := sample.what_is_wrong(paid=()):
                raise Failed(wrong)
            turn.values |= churn.undo()

    def what_is_wrong(self, turn: Turn) -> str:
        """Compare what the undo has left."""
        left = turn.scenario.due - self.count_due()
        return f"{left} accounts were not put back on trial." if left else ""


class Access(Workload):
    """No run comes for a day; then a clock is a year ahead. It takes no process but this one."""

    kind = "access"
    title = "Every job off, and a clock a year ahead: {due:,} of {accounts:,} accounts are due"
    tables = "normal"
    changes_accounts = False
    once = True
    measures = ()
    requests: ClassVar[int] = 200

    @contextmanager
    def around(self, turn: Turn) -> Iterator[None]:
        yield

    def perform(self, turn: Turn) -> None:
        """Ask of every account."""
        turn.values |= {measure: of[turn.runner.title] for measure, of in self.figures.items()}

    @cached_property
    def figures(self) -> dict[str, dict[str, float]]:
        """Those of both, measured once. The fuse is set to a day's worth."""
        return access.figures(now=self.now, fuse=self.count_due(), requests=self.requests)

    def what_is_wrong(self, turn: Turn) -> str:
        """Nothing changes."""
        return ""


class Scheduled(Workload):
    """Each contender by its own schedule, on a database and a broker of its own."""

    changes_accounts = False
    once = True
    every: ClassVar[int]  # seconds between two ticks

    @contextmanager
    def around(self, turn: Turn) -> Iterator[None]:
        """Copy the tables, and have the contender stand there."""
        with (
            own_site(ScratchDatabase(), self.tables, name=turn.runner.name) as turn.own,
            turn.runner.standing(turn.own.site, logs=self.logs, every=self.every),
        ):
            yield

    def what_is_wrong(self, turn: Turn) -> str:
        """Nothing to compare: what came out is what was waited for."""
        return ""


class AtRest(Scheduled):
    """What stands ready while there is nothing to do."""

    kind = "idle"
    title = "While there is nothing to do"
    measures = (measures.at_rest,)
    every = contenders.HOUR
    together = True

    @contextmanager
    def around(self, turn: Turn) -> Iterator[None]:
        """Let pass what each process does once."""
        with super().around(turn):
            faults.pause(3 if turn.runner.roles() else 0)
            yield

    def perform(self, turn: Turn) -> None:
        """Rest; what leaves nothing behind runs instead, and finds nothing due."""
        if turn.runner.roles():
            faults.pause(self.options.rest_seconds)
        else:
            turn.runner.run()


EXPIRED_SINCE = """
    SELECT id, as_of, finished FROM accounts_expiryrun WHERE id > %s AND expired_count > 0 AND finished IS NOT NULL
    ORDER BY id DESC LIMIT 1
"""


class Late(Scheduled):
    """The accounts fall due, and a second later at most is a tick."""

    kind = "late"
    title = "How late a tick is"
    every = 1
    measures = ()

    def perform(self, turn: Turn) -> None:
        """Compare the moment of each tick with that at which its accounts had expired, by the ledger."""
        runner, late = turn.runner, list[float]()
        latest = 0
        while len(late) < self.options.ticks:
            faults.fall_due(runner.site, 10)
            expired_since = partial(runner.site.ask, EXPIRED_SINCE, latest)
            faults.wait_for("a tick", expired_since, seconds=60)
            ((latest, as_of, finished),) = expired_since()
            late.append(finished.timestamp() - runner.scheduled(as_of.timestamp(), self.every))
        turn.values |= {"late_median_seconds": median(late), "late_worst_seconds": max(late), "ticks": len(late)}


class Faults(Scheduled):
    """Each contender is broken in every way, and recovers by its own means."""

    kind = "faults"
    title = "What breaks, with a tick every {every} s"
    fixed_accounts = 50_000  # more than become due
    every = faults.EVERY
    measures = ()
    together = True

    def perform(self, turn: Turn) -> None:
        """Break it, and wait."""
        if turn.own:
            turn.values |= faults.suffer(turn.runner, turn.own)


@dataclass(kw_only=True)
class Mails(Workload):
    """The same notices through a slow mail server, a real one: one at a time, and several at once on either path."""

    kind = tables = "mails"
    title = "{due:,} mails through a server that takes 50 ms for each"
    measures = measures.RUN
    baseline = "mail-celery-8"

    mailbox: Mailbox

    def fill(self) -> None:
        sample.fill_mails(self.accounts, now=self.now)

    def count_due(self) -> int:
        return self.accounts

    @contextmanager
    def around(self, turn: Turn) -> Iterator[None]:
        self.mailbox.received.clear()
        yield

    def what_is_wrong(self, turn: Turn) -> str:
        """Compare what arrived with what was owed, one mail to every user."""
        arrived: Mapping[str, int] = Counter(self.mailbox.recipients)
        owed = set(User.objects.values_list("email", flat=True))
        if missing := owed - arrived.keys():
            return f"{len(missing)} mail(s) did not arrive."
        if strangers := arrived.keys() - owed:
            return f"{len(strangers)} mail(s) went to somebody who was owed none."
        if repeated := [address for address, times in arrived.items() if times > 1]:
            return f"{len(repeated)} mail(s) arrived more than once."
        unsent = Notice.objects.exclude(status=Notice.Status.SENT).count()
        notices = Notice.objects.count()
        if unsent or notices != len(owed):
            return f"{notices} notices are on record for {len(owed)} mails, {unsent} of them not as sent."
        return ""


IN_ORDER = (NothingDue, NormalDay, Backlog, DearBacklog, Mails, AtRest, Late, Access, Churn, AfterHalf, Faults)
KINDS = [each.kind for each in IN_ORDER]
"""In the order to show them."""
