"""An invented result of ``compare_paths``, of believable size, for tests of what reads results."""

from collections import defaultdict

from comparison.measurements import Contender, Key, Options, Result, Scenario, Values

MB = 1_000_000
HOUR = 3600.0


def contender(name: str, title: str, path: str) -> Contender:
    return Contender(name=name, title=title, how=f"This is how {title} works.", path=path)


PATHS = (
    contender("raw-sql", "One raw UPDATE", "limit"),
    contender("one-update", "One update() of all", "cron"),
    contender("command", "expire_trials", "cron"),
    contender("celery-1", "Celery, 1 process", "celery"),
    contender("celery-2", "Celery, 2 processes", "celery"),
    contender("row-by-row", "A loop of save()", "cron"),
)
CONTENDERS = (
    *PATHS,
    contender("python", "python", "limit"),
    contender("django-setup", "django.setup()", "limit"),
    contender("mail-command", "send_trial_notices", "cron"),
    contender("mail-celery-1", "Celery, 1 process", "celery"),
    contender("mail-celery-8", "Celery, 8 processes", "celery"),
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
        "wait_median_seconds": 0.002 + longest / 5,
        "wait_p99_seconds": 0.004 + longest * 0.9,
        "wait_max_seconds": 0.004 + longest,
    }
    late = {"late_average_seconds": HOUR / 2 + start_up + work, "late_worst_seconds": HOUR + start_up + work}
    return {
        "measured_on": min(of.due, 250) if contender == "row-by-row" else of.due,
        "seconds": start_up + work,
        "service_seconds": work,
        "start_up_share": start_up / (start_up + work),
        "cpu_seconds": start_up * 0.9 + 0.05 * work,
        "database_cpu_seconds": 0.9 * work,
        "peak_memory_bytes": memory * MB,
        "longest_transaction_seconds": longest,
        "payments": payments,
        **(waits if payments else {}),
        **(late if of.kind == "normal" else {}),
    }


def held(processes: int) -> dict[str, float]:
    worker = 64 + 24 * processes
    return {
        "processes": 3 + processes,
        "broker_bytes": 9 * MB,
        "scheduler_bytes": 62 * MB,
        "worker_bytes": worker * MB,
        "held_bytes": (71 + worker) * MB,
    }


OTHERS: dict[str, dict[str, dict[str, float]]] = {
    "idle": {"command": {"processes": 0, "held_bytes": 0}, "celery-1": held(1), "celery-2": held(2)},
    "start-up": {"python": {"seconds": 0.016}, "django-setup": {"seconds": 0.38}, "command": {"seconds": 0.45}},
    "killed": {
        "command": {"left": 391_000, "seconds": 2.9, "until_tick_seconds": HOUR},
        "celery-2": {"left": 380_000, "seconds": 4.4, "until_tick_seconds": 600},
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
            for kind, baseline in (("idle", ""), ("start-up", "django-setup"), ("killed", ""))
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
            interval_seconds=HOUR,
            mails=200,
        ),
        contenders=CONTENDERS,
        scenarios=scenarios,
        values=all_values(scenarios),
    )
