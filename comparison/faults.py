"""What can break, one function each: done to a contender whose schedule ticks, and waited out.

Before each one the schedule has just ticked and 40,000 accounts have fallen due. A process that ends by itself is
started again when the fault is over, as a supervisor does. What is measured is waited for: the seconds from the end of
the fault, or from the kill, until no account is due.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from django.conf import settings

from comparison.runners import Failed, Runner, Site, stopped
from comparison.sites import OwnSite
from sandbox import servers

EVERY = 10  # seconds between two ticks
DUE = 40_000  # accounts: several slices, so that there is a middle to be killed in
LONGEST = 6 * EVERY  # seconds after which a fault counts as not recovered from

# They fall due now, not days ago: no tick but the rare one that looks at all accounts finds an end set into the past.
MAKE_DUE = """
    UPDATE accounts_account SET status = 'trialing', trial_expired_at = NULL, expiry_run_id = NULL,
        trial_ends_at = now() - %s * interval '1 day' + id * interval '1 microsecond'
    WHERE id <= %s
"""
LEFT = "SELECT count(*) FROM accounts_account WHERE id <= %s AND status = 'trialing'"
LATEST = "SELECT coalesce(max(id), 0) FROM accounts_expiryrun"
CLOSED_SINCE = "SELECT count(*) FROM accounts_expiryrun WHERE id > %s AND status <> 'running'"
AT_WORK_SINCE = "SELECT count(*) FROM accounts_expiryrun WHERE id > %s AND expired_count > 0"


def fall_due(site: Site, accounts: int) -> None:
    """Have the first accounts fall due."""
    site.ask(MAKE_DUE, settings.TRIAL_GRACE_DAYS, accounts)


@dataclass
class Patient:
    """A contender, and where it works."""

    runner: Runner
    own: OwnSite
    ended: int = 0  # processes that ended by themselves
    caught_up: bool = False  # a missed tick, at its start

    def ask(self, query: str, *parameters: int) -> int:
        """One number from its database."""
        ((answer,),) = self.own.site.ask(query, *parameters) or ((0,),)
        return int(answer)

    def after_a_tick(self) -> int:
        """Wait until a run has ended, and have accounts fall due right after it; returns the number of that run."""
        latest = self.ask(LATEST)
        wait_for("a tick", lambda: self.ask(CLOSED_SINCE, latest) > 0, seconds=LONGEST)
        fall_due(self.own.site, DUE)
        return self.ask(LATEST)

    def seconds_until_done(self, since: float | None = None) -> float:
        """Wait until nothing is due, and start again what has ended: from a moment on, or from now."""

        def done() -> bool:
            if ended := self.runner.ended():
                self.ended += len(ended)
                self.runner.start(*ended)
            return self.ask(LEFT, DUE) == 0

        began = since or time.monotonic()
        wait_for("the accounts to expire", done, seconds=LONGEST)
        return time.monotonic() - began


def worker_killed(patient: Patient) -> float | None:
    """The worker is killed in the middle of a run."""
    latest = patient.after_a_tick()
    wait_for("a run to begin", lambda: patient.ask(AT_WORK_SINCE, latest) > 0, seconds=LONGEST, pause=0.001)
    patient.runner.kill("worker")
    killed = time.monotonic()
    if not patient.ask(LEFT, DUE):
        raise Failed("It was done before it could be killed.")
    patient.runner.start("worker")
    return patient.seconds_until_done(killed)


def scheduler_killed(patient: Patient) -> float | None:
    """What watches the clock is killed; cron is not ours to kill."""
    if not patient.runner.roles():
        return None
    patient.after_a_tick()
    role = "scheduler" if "scheduler" in patient.runner.roles() else "worker"
    killed = time.monotonic()
    patient.runner.kill(role)
    patient.runner.start(role)
    return patient.seconds_until_done(killed)


def database_away(patient: Patient) -> float | None:
    """The database refuses connections while a tick passes."""
    return away_for_a_tick(patient, patient.own.take_database_away, patient.own.bring_database_back)


def broker_away(patient: Patient) -> float | None:
    """The broker is stopped while a tick passes. Where work is kept in the database, that was the fault before."""
    if patient.runner.store != "broker":
        return None
    return away_for_a_tick(patient, patient.own.take_broker_away, patient.own.bring_broker_back)


def away_for_a_tick(patient: Patient, take: Callable[[], None], bring_back: Callable[[], None]) -> float:
    """Take a server away while a tick passes; the seconds from its return."""
    patient.after_a_tick()
    take()
    try:
        pause(EVERY + 1)
    finally:
        bring_back()
    return patient.seconds_until_done()


def tick_missed(patient: Patient) -> float | None:
    """Everything of the contender's is killed, and started again a second after the tick that it missed."""
    patient.after_a_tick()
    patient.runner.kill()
    pause(EVERY + 1)
    restarted = time.monotonic()
    patient.runner.start()
    taken = patient.seconds_until_done(restarted)
    patient.caught_up = taken < EVERY - 2  # the next tick comes a second later at the earliest
    return taken


FAULTS: dict[str, Callable[[Patient], float | None]] = {
    "worker": worker_killed,
    "scheduler": scheduler_killed,
    "database": database_away,
    "broker": broker_away,
    "missed": tick_missed,
}


def suffer(runner: Runner, own: OwnSite) -> dict[str, float]:
    """Go through every fault; ``worker_seconds``, and ``worker_ended`` processes, and so on for each."""
    values: dict[str, float] = {}
    for name, fault in FAULTS.items():
        patient = Patient(runner, own)
        try:
            seconds = fault(patient)
        except TimeoutError:
            values[f"{name}_not_within_seconds"] = float(LONGEST)
            continue
        if seconds is not None:
            values |= {f"{name}_seconds": seconds, f"{name}_ended": patient.ended}
            values |= {f"{name}_caught_up": float(patient.caught_up)}
    return values


def pause(seconds: float) -> None:
    """Wait, unless the comparison is stopped."""
    if stopped.wait(seconds):
        raise Failed("Stopped by hand.")


def wait_for(what: str, condition: Callable[[], object], *, seconds: float, pause: float = 0.02) -> None:
    """Wait, unless the comparison is stopped. A database that is not back yet has nothing to tell."""

    def unless_stopped() -> bool:
        if stopped.is_set():
            raise Failed("Stopped by hand.")
        try:
            return bool(condition())
        except psycopg.OperationalError:
            return False

    servers.wait_for(what, unless_stopped, seconds=seconds, pause=pause)
