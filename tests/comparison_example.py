"""An invented result of ``compare_paths``, of believable size, for tests of what reads results."""

from comparison.results import (
    DJANGO_SETUP,
    Contender,
    DueQuery,
    Machine,
    Options,
    Recovery,
    Result,
    Sample,
    Scenario,
    Spread,
    Standing,
    StartUp,
    Timeliness,
)

MB = 1_000_000
HOUR = 3600.0
CONTENDERS = (
    Contender(
        name="raw-sql",
        title="psql, one UPDATE",
        how="psql runs a single UPDATE of the same rows and columns. The limit.",
        path="limit",
    ),
    Contender(
        name="one-update",
        title="The article's command",
        how="A management command with one queryset.update().",
        path="cron",
    ),
    Contender(
        name="command",
        title="manage.py expire_trials",
        how="This project's command, a process for each run.",
        path="cron",
    ),
    Contender(
        name="celery-1",
        title="Celery, 1 process",
        how="A message to a worker with one process.",
        path="celery",
    ),
    Contender(
        name="celery-2",
        title="Celery, 2 processes",
        how="A message to a worker with two processes.",
        path="celery",
    ),
    Contender(
        name="row-by-row",
        title="A loop of save()",
        how="A management command that saves account by account; measured on 2,000 accounts.",
        path="cron",
    ),
)
# For each contender: start-up seconds, seconds per account, accounts in a transaction, MB.
COSTS = {
    "raw-sql": (0.02, 5.5e-6, None, 9),
    "one-update": (0.72, 5.6e-6, None, 62),
    "command": (0.45, 5.8e-6, 10_000, 60),
    "celery-1": (0.02, 6.6e-6, 10_000, 190),
    "celery-2": (0.02, 4.0e-6, 10_000, 255),
    "row-by-row": (0.72, 850e-6, 1, 64),
}


def scenario(kind: str, accounts: int, due: int, title: str) -> Scenario:
    return Scenario(
        name=f"{kind}-{accounts}",
        kind=kind,
        title=title,
        accounts=accounts,
        due=due,
        baseline="raw-sql",
        contenders=tuple(contender.name for contender in CONTENDERS),
    )


def sample(of: Scenario, contender: str, round_number: int) -> Sample:
    startup, per_account, in_transaction, memory = COSTS[contender]
    noise = 1 + 0.04 * ((round_number * 7 + len(contender)) % 5 - 2)
    work = max(0.004, of.due * per_account) * noise
    longest = max(0.003, min(in_transaction or of.due, of.due) * per_account) * noise
    waits = min(int(20 * (startup + work)), of.due // 2)
    return Sample(
        scenario=of.name,
        contender=contender,
        round=round_number,
        measured_on=min(of.due, 2000) if contender == "row-by-row" else of.due,
        seconds=startup + work,
        service_seconds=work,
        cpu_seconds=startup * 0.9 + 0.05 * work,
        database_cpu_seconds=0.9 * work,
        peak_memory_bytes=memory * MB,
        longest_transaction_seconds=longest,
        waits=waits,
        wait_median_seconds=0.002 + longest / 5 if waits else None,
        wait_p99_seconds=0.004 + longest * 0.9 if waits else None,
        wait_max_seconds=0.004 + longest if waits else None,
    )


def start_up(what: str, seconds: float) -> StartUp:
    spread = Spread.of([seconds * 0.95, seconds, seconds * 1.1])
    return StartUp(what=what, seconds=spread, ratio=Spread.of([seconds / 0.38]))


def result() -> Result:
    """A comparison at 10,000, 100,000 and 1,000,000 accounts in three rounds."""
    sizes = (10_000, 100_000, 1_000_000)
    scenarios = (
        scenario("nothing", sizes[-1], 0, "Nothing due among 1,000,000 accounts"),
        scenario("normal", sizes[-1], 1000, "A normal day: 1,000 of 1,000,000 accounts are due"),
        *(
            scenario("backlog", size, size * 8 // 10, f"A backlog: {size * 8 // 10:,} of {size:,} accounts are due")
            for size in sizes
        ),
    )
    return Result(
        machine=Machine(
            cpu="An invented processor at 2.4 GHz",
            cores=2,
            memory_bytes=24_000 * MB,
            system="Linux 6.1",
            python="3.11.2",
            django="5.2.19",
            celery="5.7.0",
            database="PostgreSQL 18.1",
            broker="Valkey 9.1.2",
        ),
        options=Options(
            command="make compare",
            measured="2026-11-22T22:00:00+00:00",
            sizes=sizes,
            rounds=3,
            seed=61,
            workers=2,
            interval_seconds=HOUR,
        ),
        contenders=CONTENDERS,
        scenarios=scenarios,
        samples=tuple(
            sample(each, contender, round_number)
            for each in scenarios
            for round_number in (1, 2, 3)
            for contender in each.contenders
        ),
        start_ups=(
            start_up("python", 0.016),
            start_up(DJANGO_SETUP, 0.38),
            start_up("command", 0.45),
        ),
        due_queries=(DueQuery(accounts=1_000_000, seconds=Spread(median=0.0004, lowest=0.0003, highest=0.0021)),),
        standing=(
            Standing(path="celery", role="broker", concurrency=None, processes=1, memory_bytes=9 * MB),
            Standing(path="celery", role="beat", concurrency=None, processes=1, memory_bytes=62 * MB),
            Standing(path="celery", role="worker", concurrency=1, processes=2, memory_bytes=88 * MB),
            Standing(path="celery", role="worker", concurrency=2, processes=3, memory_bytes=112 * MB),
        ),
        timeliness=tuple(
            Timeliness(
                contender=name,
                scenario="normal-1000000",
                interval_seconds=HOUR,
                average_seconds=HOUR / 2 + COSTS[name][0],
                worst_seconds=HOUR + COSTS[name][0],
            )
            for name in COSTS
            if name != "raw-sql"
        ),
        recoveries=(
            Recovery(
                contender="command",
                scenario="backlog-1000000",
                left=391_000,
                seconds=2.9,
                schedule_adds_seconds=HOUR,
                how="The next cron run takes what is left.",
            ),
            Recovery(
                contender="celery-2",
                scenario="backlog-1000000",
                left=380_000,
                seconds=4.4,
                schedule_adds_seconds=HOUR,
                how="The worker is started again; the next tick takes what is left.",
            ),
        ),
    )
