"""The proof of the checker: each bug is planted in a copy of the project, and a short storm must find it.

A bug is a text of one file and what replaces it. A text that does not occur exactly once stops the proof: then the
code has changed, and the bug must be planted anew.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "docs/evidence.md"
BEGIN, END = "<!-- written by make storm-proof -->\n", "<!-- until here -->\n"
MINUTES = 0.25

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Bug:
    """A bug, and the words of the storm's ``RATES`` that it needs more of."""

    name: str
    file: str = ""
    old: str = ""
    new: str = ""
    more: str = ""
    minutes: float = MINUTES


TAKES = "TAKES_ACCOUNTS = [ExpiryRun.Status.RUNNING, "
UNDOS = "undo,repeat_messages"
MAILS = "notices,time_passes,mail_away"

BUGS = [
    Bug("none: the code as it is"),
    Bug(
        "The rule is not asked again in the UPDATE",
        "accounts/slices.py",
        "rows = within(self.rows, self.order, after=keys.after, upto=keys.upto)",
        "rows = within(self.rows.model._default_manager.all(), self.order, after=keys.after, upto=keys.upto)",
    ),
    Bug(
        "A slice is counted after its commit",
        "accounts/slices.py",
        """            if not self.count(Counted(rows=changed, locked=took, skipped=skip_locked)):
                transaction.set_rollback(True)
                return 0
""",
        "        self.count(Counted(rows=changed, locked=took, skipped=skip_locked))\n",
    ),
    Bug(
        "A slice is counted in another transaction",
        "accounts/slices.py",
        "if not self.count(Counted(rows=changed, locked=took, skipped=skip_locked)):",
        "counted = Counted(rows=changed, locked=took, skipped=skip_locked)\n"
        "            if not next(side_by_side(lambda _: iter([self.count(counted)]), [1], jobs=2)):",
    ),
    Bug("A locked row is waited for, not skipped", "accounts/slices.py", "skip_locked = True\n", "pass\n"),
    Bug(
        "A slice leaves out the last account of its range",
        "accounts/slices.py",
        """LessThanOrEqual(Row(*order), row(upto)), **{f"{order[0]}__lte": upto[0]})""",
        """LessThanOrEqual(Row(*order), row(upto)), **{f"{order[0]}__lte": upto[0]}).exclude(pk=upto[-1])""",
    ),
    Bug(
        "The grace is forgotten",
        "accounts/models.py",
        "return now - timedelta(days=settings.TRIAL_GRACE_DAYS)",
        "return now",
    ),
    Bug("An undone run goes on", "accounts/ledger.py", TAKES, TAKES + "ExpiryRun.Status.UNDONE, ", more=UNDOS),
    Bug(
        "A late slice of a run that succeeded expires accounts",
        "accounts/ledger.py",
        TAKES,
        TAKES + "ExpiryRun.Status.SUCCEEDED, ",
        # For it the run must have skipped an account that was locked.
        more="foreign_locks,repeat_messages",
        minutes=2 * MINUTES,
    ),
    Bug(
        "What an undo puts back is not counted",
        "accounts/ledger.py",
        'undone_count = F("undone_count") + slice_.rows',
        'undone_count = F("undone_count")',
        more=UNDOS,
    ),
    Bug(
        "A run is finished before its last slice",
        "accounts/tasks.py",
        """    chord(
        [expire_slice.si(run_id=run.pk, after=keys.after, upto=keys.upto) for keys in wave],
        # A slice that failed must not keep the following ones from their turn. Its error is recorded a little later.
        following().on_error(following(has_failed=True)),
    ).delay()
""",
        """    group([expire_slice.si(run_id=run.pk, after=keys.after, upto=keys.upto) for keys in wave]).delay()
    following().delay()
""",
    ),
    Bug(
        "The low-water mark passes accounts that were locked",
        "accounts/ledger.py",
        "ExpiryRun.Status.SUCCEEDED or latest.skipped:",
        "ExpiryRun.Status.SUCCEEDED:",
    ),
    Bug(
        "The low-water mark passes accounts that an undo put back",
        "accounts/ledger.py",
        ".exists() or undone.exists():",
        ".exists():",
        more=UNDOS,
    ),
    Bug(
        "Jobs share a connection",
        "accounts/threads.py",
        "        try:\n            for result in work(items):",
        """        try:
            connections["default"] = SHARED
            for result in work(items):""",
    ),
    Bug(
        "A payment for an account that is gone is confirmed",
        "accounts/services.py",
        "            return False\n        account.update(**values)",
        "            return True\n        account.update(**values)",
    ),
    Bug(
        "A mail is claimed for no time",
        "accounts/delivery.py",
        "next_attempt=now + LEASE\n",
        "next_attempt=now\n",
        MAILS,
    ),
    Bug(
        "A mail is not checked again before it is sent",
        "accounts/delivery.py",
        "return notice if notice and is_true(notice, now=now) else None",
        "return notice",
        MAILS,
    ),
    Bug(
        "A mail has a random Message-ID",
        "accounts/delivery.py",
        'headers = {"Message-ID": message_id(notice), ',
        'headers = {"Message-ID": make_msgid(), ',
        MAILS,
    ),
    Bug(
        "A mail is recorded as sent before it is sent",
        "accounts/delivery.py",
        "        message = None\n        try:\n",
        "        message = None\n        _record(claim, status=Notice.Status.SENT, sent=Now())\n        try:\n",
        MAILS,
    ),
]

IMPORTS = {
    "make_msgid": (
        "accounts/delivery.py",
        "from email.utils import parseaddr",
        "from email.utils import make_msgid, parseaddr",
    ),
    "dataclasses.": ("accounts/slices.py", "import logging\n", "import dataclasses\nimport logging\n"),
    "SHARED": (
        "accounts/threads.py",
        "    if jobs == 1:\n        return work(iter(items))\n",
        "    if jobs == 1:\n        return work(iter(items))\n    global SHARED\n    SHARED = connections['default']\n"
        "    SHARED.inc_thread_sharing()\n",
    ),
}


def plant(bug: Bug, tree: Path) -> None:
    """Plant a bug, with what it needs besides."""
    more = [needed for word, needed in IMPORTS.items() if word in bug.new]
    for name, old, new in [(bug.file, bug.old, bug.new), *more]:
        file = tree / name
        text = file.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{bug.name}: this text occurs {text.count(old)} times in {name}, not once:\n{old}")
        file.write_text(text.replace(old, new))


def require_that_it_fits(bug: Bug) -> None:
    """Plant a bug in a copy of nothing but its files; raises SystemExit."""
    files = {bug.file, *(needed[0] for word, needed in IMPORTS.items() if word in bug.new)} - {""}
    with tempfile.TemporaryDirectory() as place:
        for name in files:
            (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(place) / name)
        if files:
            plant(bug, Path(place))


def storm(bug: Bug, seed: int, prepared: Path) -> tuple[Counter[str], str]:
    """How often each check found something, and the whole output."""
    with tempfile.TemporaryDirectory(prefix="storm-proof-") as place:
        tree = Path(place) / "tree"
        shutil.copytree(
            ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "db.sqlite3*", ".*_cache")
        )
        if bug.file:
            plant(bug, tree)
        # Most of a storm's work are mails: without them there is more of the rest.
        without = "" if bug.more == MAILS or not bug.file else "notices,mail_away"
        options = [f"--without={without}", f"--seed={seed}", f"--minutes={bug.minutes}", f"--more={bug.more}"]
        options += [f"--directory={place}/storm", f"--prepared={prepared}"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.storm", *options], cwd=tree, capture_output=True, text=True, check=False
        )
    found = Counter(re.findall(r"^FOUND ([^:]+):", done.stdout, re.MULTILINE))
    if done.returncode != bool(found):
        raise SystemExit(f"{bug.name}: the storm itself failed.\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return found, done.stdout


def search(bug: Bug, prepared: Path) -> tuple[str, bool]:
    """A row of the table, and whether the bug was found; a bug that needs luck gets three storms."""
    for seed in (1, 2, 3):
        found, output = storm(bug, seed, prepared)
        if found or not bug.file:
            break
    checks = ", ".join(f"{check} ({times})" for check, times in found.most_common()) or "nothing"
    row = f"| {bug.name} | {checks} | {seed} | {bug.minutes * 60:.0f} |\n"
    as_expected = bool(found) == bool(bug.file)
    console.print(f"{row.strip()}")
    if not as_expected:
        console.print(output)
    return row, as_expected


def main() -> int:
    """Plant every bug, or those whose names contain the arguments; write the table to docs/evidence.md."""
    parser = argparse.ArgumentParser(prog="make storm-proof")
    parser.add_argument("words", nargs="*", help="plant only bugs whose names contain one of these; writes no table")
    parser.add_argument("--proof", action="store_true")
    parser.add_argument("--at-once", type=int, default=2, help="how many storms")
    parser.add_argument("--prepared", type=Path, help="a copy of the migrated database; the first storm makes it")
    options = parser.parse_args()
    words = options.words
    chosen = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    for bug in chosen:  # before the first storm
        require_that_it_fits(bug)
    with tempfile.TemporaryDirectory(prefix="storm-prepared-") as place, ThreadPoolExecutor(options.at_once) as pool:
        prepared = options.prepared or Path(place) / "postgres"
        alone = 0 if prepared.exists() else 1
        results = [search(bug, prepared) for bug in chosen[:alone]]
        results += pool.map(search, chosen[alone:], repeat(prepared))
    missed = sum(not as_expected for _, as_expected in results)
    if not words:
        head = "| Planted bug | Found by the check (times) | Seed | Seconds of storm |\n|---|---|---|---|\n"
        before, _, rest = EVIDENCE.read_text().partition(BEGIN)
        EVIDENCE.write_text(before + BEGIN + head + "".join(row for row, _ in results) + END + rest.partition(END)[2])
    console.print(f"{len(chosen) - missed} of {len(chosen)} as expected")
    return 1 if missed else 0
