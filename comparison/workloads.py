"""The scenarios: each knows how to fill its tables, what a turn does there, and how to check what came out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from accounts.models import Account, ExpiryRun, Notice
from accounts.services import BATCH_SIZE
from comparison import contenders, measures, sample
from comparison.measurements import Options, Scenario
from comparison.measures import Measure, Turn
from comparison.runners import LONGEST_RUN, Runner
from sandbox import servers
from sandbox.mail_server import Mailbox
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
    more_rounds: ClassVar[int] = 0

    accounts: int
    runners: Sequence[Runner]
    options: Options
    now: datetime  # the moment the tables are filled for

    def fill(self) -> None:
        """Fill the empty tables; the users are there."""
        sample.fill_accounts(self.accounts, kind=self.tables, seed=self.options.seed, now=self.now)

    def scenario(self) -> Scenario:
        """Describe it, with the tables filled."""
        due = self.count_due()
        return Scenario(
            name=f"{self.kind}-{self.accounts}",
            kind=self.kind,
            title=self.title.format(due=due, accounts=self.accounts),
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
        return self.once or runner.rounds or self.options.rounds + self.more_rounds

    def prepare(self, turn: Turn) -> None:
        """What must be done before a turn, and is not measured."""

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

    def prepare(self, turn: Turn) -> None:
        turn.customers = sample.customers(seed=self.options.seed)


class NothingDue(Expiry):
    """The run that finds nothing to do: most of them."""

    kind = "nothing"
    title = "Nothing due among {accounts:,} accounts"
    changes_accounts = False


class NormalDay(Expiry):
    """One account of a thousand is due."""

    kind = tables = "normal"
    title = "A normal day: {due:,} of {accounts:,} accounts are due"
    measures = (measures.lateness, *measures.EXPIRY)


class Backlog(Expiry):
    """The first run of all, or the first after a long break."""

    kind = tables = "backlog"
    title = "A backlog: {due:,} of {accounts:,} accounts are due"


class AtRest(Workload):
    """What stands ready while there is nothing to do."""

    kind = "idle"
    title = "While there is nothing to do"
    measures = (measures.at_rest,)
    changes_accounts = False
    once = True

    def perform(self, turn: Turn) -> None:
        pass


class StartUp(Workload):
    """What a process costs that finds nothing to do. Nobody watches it, and the contenders take turns."""

    kind = "start-up"
    title = "To find that nothing is due among {accounts:,} accounts"
    measures = (measures.wall_time,)
    baseline = "django-setup"
    changes_accounts = False
    more_rounds = 1  # what is short varies more


class Killed(Workload):
    """Each path is killed (SIGKILL, every process of it) half-way, and recovers by its own means."""

    kind = "killed"
    tables = "backlog"
    title = "Killed half-way: {due:,} of {accounts:,} accounts were due"
    measures = (measures.wall_time,)
    once = True
    fewest = 4 * BATCH_SIZE  # due accounts, so that there is a middle to be killed in

    def prepare(self, turn: Turn) -> None:
        """Kill it, and note what is left, and how long the schedule leaves it at worst."""
        half_done = ExpiryRun.objects.filter(expired_count__gte=turn.scenario.due // 2)
        turn.runner.be_killed(
            lambda: servers.wait_for("a run to come half-way", half_done.exists, seconds=LONGEST_RUN, pause=0.005)
        )
        turn.values["left"] = self.count_due()
        turn.values["until_tick_seconds"] = min(turn.interval_seconds, turn.runner.redelivered_after)

    def perform(self, turn: Turn) -> None:
        """Have it take over what it left; what stands ready is started in this time."""
        turn.runner.recover()


@dataclass(kw_only=True)
class Mails(Workload):
    """The same notices through a slow mail server, a real one, by the command and by ever more processes."""

    kind = tables = "mails"
    title = "{due:,} mails through a server that takes 50 ms for each"
    measures = measures.RUN
    once = True  # most of the time is the mail server's
    baseline = contenders.SendNotices.name

    mailbox: Mailbox

    def fill(self) -> None:
        sample.fill_mails(self.accounts, now=self.now)

    def count_due(self) -> int:
        return self.accounts

    def prepare(self, turn: Turn) -> None:
        self.mailbox.received.clear()

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


KINDS = [each.kind for each in (NothingDue, NormalDay, Backlog, AtRest, StartUp, Killed, Mails)]
"""In the order to show them."""
