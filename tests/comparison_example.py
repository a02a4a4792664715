"""An invented result of ``compare_paths``, of believable size, for tests of what reads results."""

from collections import defaultdict

from comparison.measurements import Contender, Key, Options, Result, Scenario, Values

MB = 1_000_000


def contender(name: str, title: str, path: str) -> Contender:
    return Contender(name=name, title=title, how=f"This is how {title} works.", path=path)


PATHS = (
    contender("raw-sql", "raw UPDATE", "limit"),
    contender("one-update", "one update()", "cron"),
    contender("row-by-row", "save() loop", "cron"),
    contender("command", "command", "cron"),
    contender("command-jobs-2", "command, 2 jobs", "cron"),
    contender("celery-2", "Celery, 2 processes", "celery"),
    contender("celery-threads-2", "Celery, 2 threads", "celery"),
    contender("procrastinate", "procrastinate", "engine"),
)
CONTENDERS = (
    *PATHS,
    contender("celery-beat-inside", "Celery threads, -B", "celery"),
    contender("mail-command", "command", "cron"),
    contender("mail-jobs-8", "command, 8 jobs", "cron"),
    contender("mail-celery-8", "Celery, 8 processes", "celery"),
    contender("mail-celery-threads-8", "Celery, 8 threads", "celery"),
    contender("vacuumed", "vacuumed", "tables"),
    contender("never-vacuumed", "never vacuumed", "tables"),
)
# For each contender: start-up seconds, seconds per account, accounts in a transaction, MB.
COSTS = {
    "raw-sql": (0.02, 5.5e-6, None, 9),
    "one-update": (0.72, 5.6e-6, None, 62),
    "row-by-row": (0.72, 850e-6, 1, 64),
    "command": (0.45, 5.8e-6, 10_000, 60),
    "command-jobs-2": (0.45, 4.1e-6, 10_000, 62),
    "celery-2": (0.02, 4.0e-6, 10_000, 255),
    "celery-threads-2": (0.02, 4.1e-6, 10_000, 105),
    "procrastinate": (0.02, 5.8e-6, 10_000, 70),
}
NAMES = tuple(COSTS)


def scenario(
    kind: str, due: int, *, accounts: int = 0, baseline: str = "raw-sql", contenders: tuple[str, ...] = NAMES
) -> Scenario:
    accounts = accounts or due
    title = f"{kind}: {due:,} of {accounts:,} accounts are due"
    return Scenario(
        name=f"{kind}-{accounts}",
        kind=kind,
        title=title,
        accounts=accounts,
        due=due,
        baseline=baseline,
        contenders=contenders,
    )


def values(of: Scenario, contender: str, number: int) -> dict[str, float]:
    start_up, per_account, in_transaction, memory = COSTS[contender]
    noise = 1 + 0.04 * ((number * 7 + len(contender)) % 5 - 2)
    work = max(0.004, of.due * per_account) * noise
    longest = max(0.003, min(in_transaction or of.due, of.due) * per_account) * noise
    payments = min(int(20 * (start_up + work)), of.due // 2)
    waits = {
        "payments": payments,
        "wait_median_seconds": 0.002 + longest / 5,
        "wait_max_seconds": 0.004 + longest,
        **({"wait_p99_seconds": 0.004 + longest * 0.9} if payments >= 100 else {}),
    }
    return {
        "measured_on": min(of.due, 250) if contender == "row-by-row" else of.due,
        "seconds": start_up + work,
        "service_seconds": work,
        "start_up_share": start_up / (start_up + work),
        "cpu_seconds": start_up * 0.9 + 0.05 * work,
        "database_cpu_seconds": 0.9 * work,
        "peak_memory_bytes": memory * MB,
        "longest_transaction_seconds": longest,
        **(waits if payments and contender != "row-by-row" else {}),
    }


def held(processes: int, *, broker: int = 9, scheduler: int = 62) -> dict[str, float]:
    worker = 64 + 24 * processes
    return {
        "day_cpu_seconds": 80.0 * (1 + processes),
        "minute_transactions": 36,
        "minute_commands": 107 if broker else 0,
        "connections": 1,
        "processes": 1 + processes + bool(scheduler) + bool(broker),
        **({"broker_bytes": broker * MB} if broker else {}),
        **({"scheduler_bytes": scheduler * MB} if scheduler else {}),
        "worker_bytes": worker * MB,
        "held_bytes": (broker + scheduler + worker) * MB,
    }


def late(median: float) -> dict[str, float]:
    return {"late_median_seconds": median, "late_worst_seconds": 3 * median, "ticks": 10}


RESTING = {"day_cpu_seconds": 18.0, "minute_transactions": 0.2, "minute_commands": 0, "connections": 0, "processes": 0}
OTHERS: dict[str, dict[str, dict[str, float]]] = {
    "idle": {
        "command": {**RESTING, "held_bytes": 0},
        "celery-2": held(2),
        "celery-beat-inside": held(1, scheduler=0),
        "procrastinate": held(0, broker=0, scheduler=0),
    },
    "churn": {
        "vacuumed": {
            "table_bytes": 140 * MB,
            "indexes_bytes": 120 * MB,
            "trials_bytes": 9 * MB,
            "growth_share": 0.19,
            "notices_bytes": 90 * MB,
            "dead_rows": 120_000,
            "vacuums": 3,
            "signed_up": 150_000,
            "expired": 87_000,
            "wal_account_bytes": 6_300,
            "wal_ticks_bytes": 1_900,
            "ticks_first_seconds": 0.012,
            "ticks_last_seconds": 0.014,
            **{f"{what}_day_{day}_seconds": 0.0005 * day for what in ("whole", "above") for day in (1, 10, 20, 30)},
        },
        "never-vacuumed": {"dead_rows": 400_000, "whole_day_30_seconds": 0.35, "above_day_30_seconds": 0.0007},
    },
    "half": {
        "vacuumed": {"whole_seconds": 0.0004, "above_seconds": 0.0003, "health_seconds": 0.004},
        "never-vacuumed": {
            "whole_seconds": 0.35,
            "above_seconds": 0.0006,
            "tick_before_seconds": 0.009,
            "tick_after_seconds": 0.010,
            "first_slice_seconds": 0.08,
            "row_bytes": 71.5,
            "key_index_bytes": 21.4,
            "user_index_bytes": 21.4,
            "due_index_bytes": 30.1,
            "run_index_bytes": 30.1,
            "run_seconds": 14.0,
            "undo_seconds": 31.0,
            "wal_expiry_bytes": 560,
            "wal_undo_bytes": 900,
            "wal_mail_bytes": 800,
            "health_seconds": 0.006,
            "metrics_seconds": 0.05,
            "overview_seconds": 0.18,
            "plan_mails_seconds": 14.0,
            "claim_seconds": 0.0012,
        },
    },
    "late": {"command": late(0.81), "celery-2": late(0.031), "procrastinate": late(0.04)},
    "faults": {
        "command": {
            "worker_seconds": 10.7,
            "worker_ended": 0,
            "database_seconds": 9.9,
            "database_ended": 0,
            "missed_seconds": 9.9,
            "missed_ended": 0,
            "missed_caught_up": 0,
        },
        "celery-2": {
            "worker_seconds": 6.1,
            "worker_ended": 0,
            "scheduler_seconds": 2.4,
            "scheduler_ended": 0,
            "database_seconds": 4.2,
            "database_ended": 1,
            "broker_not_within_seconds": 60,
            "missed_seconds": 2.9,
            "missed_ended": 0,
            "missed_caught_up": 1,
        },
    },
}


def all_values(scenarios: tuple[Scenario, ...]) -> dict[Key, Values]:
    taken: defaultdict[Key, dict[int, float]] = defaultdict(dict)
    for of in scenarios:
        for name in of.contenders:
            for number in (1,) if of.kind in OTHERS else (1, 2, 3):
                measured = OTHERS[of.kind][name] if of.kind in OTHERS else values(of, name, number)
                for measure, value in measured.items():
                    taken[of.name, name, measure][number] = value
    return dict(taken)


def result() -> Result:
    """A comparison at 10,000, 100,000 and 1,000,000 accounts in three rounds."""
    sizes = (10_000, 100_000, 1_000_000)
    scenarios = (
        scenario("nothing", 0, accounts=sizes[-1]),
        scenario("normal", 1000, accounts=sizes[-1]),
        *(scenario("backlog", size * 8 // 10, accounts=size) for size in sizes),
        *(
            scenario(kind, 0, accounts=sizes[0], baseline=baseline, contenders=tuple(OTHERS[kind]))
            for kind, baseline in (("idle", ""), ("late", ""), ("churn", ""), ("half", ""), ("faults", ""))
        ),
    )
    return Result(
        machine={
            "Processor": "An invented processor at 2.4 GHz, 2 cores",
            "Memory": "24.0 GB",
            "System": "Linux 6.1",
            "Database": "PostgreSQL 18.1",
            "Broker": "Valkey 9.1.2",
            "Python": "3.11.2",
            "Django": "5.2.19",
            "Celery": "5.7.0",
        },
        options=Options(
            command="make compare",
            measured="2026-11-22T22:00:00+00:00",
            kinds=("nothing", "normal", "backlog", *OTHERS),
            sizes=sizes,
            rounds=3,
            seed=61,
            workers=2,
            mails=200,
            rest_seconds=30,
            ticks=10,
            only=(),
        ),
        contenders=CONTENDERS,
        scenarios=scenarios,
        values=all_values(scenarios),
    )
