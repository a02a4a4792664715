"""Mails to a server that is slow, disconnects, refuses, crashes and restarts, from processes that are killed."""

import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from django.utils import timezone

from accounts import notices, services
from accounts.delivery import LEASE
from accounts.models import ExpiryRun, Notice
from sandbox import servers
from sandbox.mail_server import Mailbox, mail_server
from sandbox.servers import free_port, wait_for
from tests.conftest import ManagePy, Process, Send
from tests.factories import make_accounts
from tests.faults import faults
from tests.faults.conftest import Gate, gate_before

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

DAY, SECOND = timedelta(days=1), timedelta(seconds=1)


class BadMailServer:
    """A mail server that fails for every fifth address, the first time it receives it, and that can be killed.

    After a restart, on the same port, it still knows the addresses it received and the mails it accepted.
    """

    AT_RECIPIENT: Mapping[int, str] = {1: "450 4.2.1 mailbox busy", 6: "550 5.1.1 no such user", 11: "drop"}
    AT_END: Mapping[int, str] = {16: "451 4.7.0 try later", 21: "554 5.7.1 it looks like spam", 26: "drop"}

    def __init__(self) -> None:
        self.port = free_port()
        self.lives: list[Mailbox] = []
        self.heard: Counter[tuple[int, str]] = Counter()

    @contextmanager
    def alive(self) -> Iterator[None]:
        with mail_server(self.port) as mailbox:
            mailbox.on_rcpt, mailbox.on_data = self.first_time(self.AT_RECIPIENT), self.first_time(self.AT_END)
            mailbox.delay, mailbox.mails_per_connection = 0.002, 40
            self.lives.append(mailbox)
            yield

    def first_time(self, answers: Mapping[int, str]) -> Callable[[str], str | None]:
        def answer(address: str) -> str | None:
            self.heard[id(answers), address] += 1
            number = int("".join(filter(str.isdigit, address)))
            return answers.get(number % 30) if self.heard[id(answers), address] == 1 else None

        return answer

    def wait_for_mails(self, count: int) -> None:
        """Wait until it has accepted that many more mails."""
        enough = self.taken() + count
        wait_for(f"{enough} mails", lambda: self.taken() >= enough, seconds=60)

    def taken(self) -> int:
        return sum(len(mailbox.received) for mailbox in self.lives)

    def assert_everybody_was_told(self, *, repeats: range) -> None:
        """Assert that every owed mail is recorded as sent and was accepted, with its own Message-ID."""
        assert set(Notice.objects.values_list("status", flat=True)) == {Notice.Status.SENT}
        mails = Counter((mail["To"], mail["Message-ID"]) for life in self.lives for mail in life.mails)
        assert sorted(to for to, _ in mails) == sorted(Notice.objects.values_list("account__user__email", flat=True))
        assert sum(mails.values()) - len(mails) in repeats


@pytest.fixture
def server() -> BadMailServer:
    return BadMailServer()


@pytest.fixture
def notices_on(server: BadMailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that the test starts sends to that server."""
    monkeypatch.setenv("TRIAL_NOTICES", "1")
    monkeypatch.setenv("EMAIL_URL", f"smtp://127.0.0.1:{server.port}")
    monkeypatch.setenv("DEFAULT_FROM_EMAIL", "trials@example.com")


Command = Callable[[], AbstractContextManager[subprocess.Popen[bytes]]]


@pytest.fixture
def command(environment: Mapping[str, str], notices_on: None, tmp_path: Path) -> Command:
    """``./manage.py send_trial_notices``, running concurrently with the test."""
    return lambda: servers.process("manage.py", "send_trial_notices", env=environment, log=tmp_path / "command.log")


def owe(count: int) -> None:
    """Queue mails: half say that a trial has ended, half that it ends tomorrow."""
    now = timezone.now()
    make_accounts(count // 2, ended=10 * DAY, now=now)
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    make_accounts(count - count // 2, ended=-DAY / 2, now=now)
    assert notices.queue_notices(now=timezone.now()).total == count


def hours_pass() -> None:
    """Make mails due for their next attempt that were refused or deferred, or whose process died.

    Except those that a living process has claimed: the mail server here answers within seconds.
    """
    now = timezone.now()
    living = Notice.objects.pending().filter(claimed__gt=now - 15 * SECOND)
    Notice.objects.pending().filter(next_attempt__gt=now).exclude(pk__in=living).update(next_attempt=now)


def no_mail_is_in_hand() -> bool:
    return not Notice.objects.pending().filter(claimed__gt=timezone.now() - 15 * SECOND).exists()


def send_the_rest(manage_py: ManagePy, send: Send | None = None) -> None:
    """Send ticks until no mail is owed. One is not enough, because three deferred mails in a row end a delivery."""
    for _ in range(40):
        wait_for("who has a mail in hand to be done or dead", no_mail_is_in_hand)
        hours_pass()
        if send:
            send("accounts.send_trial_notices")
        assert manage_py("send_trial_notices").returncode in {0, 1}
        if not Notice.objects.pending().exists():
            return
    raise AssertionError(f"{Notice.objects.pending().count()} mails are still owed.")


def kill(process: subprocess.Popen[bytes]) -> int:
    """Kill a process and its children; returns how many of them may have been sending a mail."""
    children = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children()]
    faults.kill(process)
    return max(1, sum("_tracker import main" not in line for line in children))  # that of a worker that spawns


def test_two_thousand_mails_arrive_while_senders_and_mail_server_die(
    server: BadMailServer, celery: Process, command: Command, send: Send, manage_py: ManagePy
) -> None:
    owe(2000)
    killed = 0

    with server.alive(), celery("worker", "--concurrency=2") as worker, command() as cron:
        send("accounts.send_trial_notices")
        server.wait_for_mails(300)
        killed += kill(worker)
        killed += kill(cron)

    away = manage_py("send_trial_notices")
    assert away.returncode == 1
    assert away.stderr.startswith("CommandError: The mail server cannot be used: ConnectionRefusedError")

    with celery("worker", "--concurrency=2", "--hostname=another@%h"):
        for _ in range(3):
            hours_pass()
            with server.alive(), command() as cron:
                send("accounts.send_trial_notices")
                server.wait_for_mails(100)
                killed += kill(cron)
        with server.alive():
            send_the_rest(manage_py, send)

    assert killed == 6
    server.assert_everybody_was_told(repeats=range(killed + 1))


def test_a_mail_server_that_dies_and_comes_back_has_nothing_repeated(
    server: BadMailServer, command: Command, manage_py: ManagePy
) -> None:
    owe(200)

    for _ in range(2):
        with ExitStack() as running:
            with server.alive():
                crons = [running.enter_context(command()) for _ in range(2)]
                server.wait_for_mails(30)
                faults.in_mid_work(*crons)
            assert [cron.wait(60) for cron in crons] == [1, 1]  # it died during the delivery
        hours_pass()
    with server.alive():
        send_the_rest(manage_py)

    server.assert_everybody_was_told(repeats=range(1))


def test_a_process_killed_before_its_answer_is_recorded_repeats_one_mail(
    server: BadMailServer, celery: Process, command: Command, send: Send
) -> None:
    owe(6)
    first, second = Notice.objects.order_by("pk")[:2]
    recorded = f"IF NEW.status = 'sent' THEN {Gate.HOLD} END IF;"

    with server.alive():
        server.lives[0].on_rcpt = server.lives[0].on_data = lambda address: None  # from here on it accepts every mail
        with gate_before(first, hold=recorded) as gate, command() as cron:
            gate.wait_until_held()
            assert kill(cron) == 1
            gate.turn_away()
        with gate_before(second, hold=recorded) as gate, celery("worker", "--concurrency=1") as worker:
            send("accounts.send_trial_notices")
            gate.wait_until_held()
            faults.kill_child(worker)
            gate.turn_away()
            gate.open()
            in_hand = Notice.objects.filter(pk__in=[first.pk, second.pk], attempts=1)
            wait_for("the others to be sent", lambda: list(Notice.objects.pending()) == list(in_hand))
            assert all(notice.next_attempt > timezone.now() + LEASE / 2 for notice in in_hand)
            in_hand.update(next_attempt=timezone.now())  # hours later
            send("accounts.send_trial_notices")
            wait_for("these to be sent as well", lambda: not Notice.objects.pending().exists())

    server.assert_everybody_was_told(repeats=range(2, 3))
    told = Counter(server.lives[0].recipients)
    assert [told[notice.account.user.email] for notice in (first, second)] == [2, 2]


# --- Stop signals ---


@pytest.fixture
def slow_server(server: BadMailServer) -> Iterator[BadMailServer]:
    """A mail server that takes half a second for each mail and accepts all."""
    with server.alive():
        mailbox = server.lives[0]
        mailbox.on_rcpt = mailbox.on_data = lambda address: None
        mailbox.delay = 0.5
        yield server


def assert_that_the_mail_in_hand_was_the_last(server: BadMailServer, before: int, processes: int) -> None:
    """Assert that every mail that the server accepted is recorded as sent, and no notice is claimed."""
    assert server.taken() <= before + 2 * processes  # the current one, and one started before the signal
    assert Notice.objects.filter(status=Notice.Status.SENT).count() == server.taken()
    assert not Notice.objects.pending().exclude(claimed=None, attempts=0)


@pytest.mark.usefixtures("notices_on")
@pytest.mark.parametrize(("pool", "processes"), [("prefork", 2), ("threads", 2), ("solo", 1)])
def test_a_worker_told_to_stop_finishes_the_mails_in_hand(
    slow_server: BadMailServer, celery: Process, send: Send, pool: str, processes: int
) -> None:
    owe(60)
    options = ("worker", f"--pool={pool}", f"--concurrency={processes}")

    with celery(*options) as worker:
        send("accounts.send_trial_notices")
        slow_server.wait_for_mails(3)
        before = slow_server.taken()
        faults.send_signal(worker, signal.SIGTERM)
        worker.wait(15)
    assert_that_the_mail_in_hand_was_the_last(slow_server, before, processes)

    slow_server.lives[0].delay = 0
    with celery(*options):
        wait_for("the next worker to send the rest", lambda: not Notice.objects.pending().exists())
    slow_server.assert_everybody_was_told(repeats=range(1))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_command_told_to_stop_finishes_the_mail_in_hand(
    slow_server: BadMailServer,
    command: Command,
    manage_py: ManagePy,
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    owe(20)

    with command() as cron:
        slow_server.wait_for_mails(2)
        before = slow_server.taken()
        faults.send_signal(cron, how)
        assert cron.wait(15) == 130
    assert_that_the_mail_in_hand_was_the_last(slow_server, before, 1)
    assert "CommandError: Stopped by a signal." in (tmp_path / "command.log").read_text()

    slow_server.lives[0].delay = 0
    assert manage_py("send_trial_notices").returncode == 0
    slow_server.assert_everybody_was_told(repeats=range(1))
