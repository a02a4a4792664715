"""Which small changes of the code do the tests notice? ``make mutants`` makes one at a time and runs the tests of it.

A mutant is one exact replacement: another comparison, a number off by one, a statement or an argument dropped. The
project is copied to a temporary directory, so that processes which a test starts run the mutant too. There the fast
suite runs once with coverage, which says which tests run which line; each mutant is then tried with only those, the
quickest first, and when none of them fails with the tests that run its module in other processes. A mutant that makes a
test hang is not noticed: a test has to fail by itself, by a deadline of its own.
"""

import argparse
import ast
import atexit
import gc
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parent.parent

PROCESSES = {
    "accounts/delivery.py": ["faults/test_mail"],
    "accounts/health.py": ["test_health"],
    "accounts/ledger.py": ["faults/test_workers", "faults/test_undo"],
    "accounts/mailer.py": ["faults/test_mail"],
    "accounts/management/base.py": ["test_command", "faults/test_stop_signals"],
    "accounts/management/commands/expire_trials.py": ["test_command", "faults/test_stop_signals"],
    "accounts/management/commands/send_trial_notices.py": ["test_notice_command", "faults/test_stop_signals"],
    "accounts/management/commands/undo_expiry.py": ["test_undo", "faults/test_stop_signals"],
    "accounts/notices.py": ["test_notice_command"],
    "accounts/services.py": ["faults/test_database", "faults/test_undo"],
    "accounts/slices.py": ["faults/test_database", "faults/test_undo"],
    "accounts/tasks.py": ["test_celery", "test_notice_tasks", "faults/test_poison", "faults/test_workers"],
    "project/settings.py": [
        "test_settings",
        "test_words",
        "test_production",
        "test_web",
        "test_celery",
        "faults/test_broker",
    ],
}
"""The modules that are changed, and the files whose tests run each where coverage does not see it: in other processes,
or at import."""

SECONDS = 60
"""How much longer than usual the tests of a mutant may take before it counts as a hang."""

# --- Inside pytest: record which test runs which line, or run chosen tests. ---

RECORD, CHOSEN, TRIED = "PYTEST_MUTANTS_RECORD", "PYTEST_MUTANTS_CHOSEN", "PYTEST_MUTANTS_TRIED"
_coverage: Any = None
_seconds: dict[str, float] = defaultdict(float)

if RECORD in os.environ:
    import coverage

    _file = Path(os.environ[RECORD]) / f".coverage.{os.getpid()}"
    _coverage = coverage.Coverage(
        data_file=_file, source=["accounts", "project", "users"], branch=True, config_file=False
    )
    _coverage.start()  # before pytest-django imports the project


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if _coverage:
        _coverage.switch_context(item.nodeid)
    result = yield
    if _coverage:
        _coverage.switch_context("")
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _coverage and not hasattr(session.config, "workerinput") and session.config.getoption("numprocesses", None):
        return  # xdist's controller runs no test
    if _coverage:
        _coverage.stop()
        _coverage.save()
        data = _coverage.get_data()
        lines = {name: data.contexts_by_lineno(str(Path(name).resolve())) for name in PROCESSES}
        out = Path(os.environ[RECORD]) / f"{os.getpid()}.json"
        out.write_text(json.dumps({"lines": lines, "seconds": _seconds}))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    if CHOSEN in os.environ:
        place = {nodeid: number for number, nodeid in enumerate(json.loads(Path(os.environ[CHOSEN]).read_text()))}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])
    return (yield)


# --- Inside pytest: change functions of the running process, one after the other. ---


class Hang(BaseException):
    """The tests of a mutant took too long."""


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Instead of the tests, try each mutant of a list with its tests, and write a line with who noticed it."""
    if TRIED not in os.environ:
        return None
    items = {item.nodeid: item for item in session.items}
    todo, done = (Path(os.environ[TRIED]).with_suffix(suffix) for suffix in (".todo", ".done"))

    def stop(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    with done.open("a") as told:
        for number, file, begin, end, new, tests, seconds in json.loads(todo.read_text()):
            told.write(f"{number}\tbegun\n")
            told.flush()
            chosen = [items[test] for test in tests if test in items]
            signal.alarm(ceil(seconds))
            try:
                with mutated(Path(file).resolve(), begin, end, new):
                    by = first_to_fail(chosen)
            except ValueError:  # the function can be changed only in its file
                by = "?"
            except Hang:
                by = "hang"
            signal.alarm(0)
            if by in items and first_to_fail([items[by]]):
                by = "?"  # it also fails without the mutant, after what the mutant left behind
            told.write(f"{number}\t{by}\n")
            told.flush()
    return True


def first_to_fail(items: list[pytest.Item]) -> str:
    """Run the tests until one fails; returns its name, "" when all pass."""
    for item in items:
        item._initrequest()  # type: ignore[attr-defined]
        for report in runtestprotocol(item, log=False, nextitem=item.session):  # type: ignore[arg-type]
            if report.failed:
                return "hang" if "Hang" in str(report.longrepr)[-200:] else item.nodeid
    return ""


@contextmanager
def mutated(path: Path, begin: int, end: int, new: str) -> Iterator[None]:
    """Give the functions of a module, wherever they are referred to, the code of the mutant.

    Raises:
        ValueError: a function would use other variables of the function around it.
    """
    source = path.read_bytes()
    mutant = source[:begin] + new.encode() + b"\n" * source[begin:end].count(b"\n") + source[end:]
    codes = {(code.co_qualname, code.co_firstlineno): code for code in codes_in(compile(mutant, path, "exec"))}
    before: list[tuple[FunctionType, CodeType]] = []
    try:
        for function in functions_of(str(path)):
            code = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
            if code is None:
                raise ValueError(function)
            if code != function.__code__:
                before.append((function, function.__code__))
                function.__code__ = code
        if not before:
            raise ValueError(path)
        yield
    finally:
        for function, code in before:
            function.__code__ = code


@cache
def functions_of(path: str) -> list[FunctionType]:
    """The functions of a module, also those that a decorator has wrapped."""
    functions = [found for found in gc.get_objects() if type(found) is FunctionType]
    return [function for function in functions if function.__code__.co_filename == path]


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """The code and that of every function in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


# --- The mutants ---

COMPARED: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
CALCULATED: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
}
WORDS_ONLY = {"help", "metavar", "what", "verb", "over"}
"""Keywords whose argument is only read by people."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One replacement of the bytes from ``begin`` to ``end`` of a file."""

    file: str
    line: int
    begin: int
    end: int
    old: str
    new: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {' '.join(self.old.split())[:70]!r} -> {' '.join(self.new.split())[:70]!r}"


class Finder(ast.NodeVisitor):
    """Finds the mutants of one file."""

    def __init__(self, file: str) -> None:
        self.file, self.source, self.found = file, (ROOT / file).read_bytes(), list[Mutant]()
        self.starts = [0]
        for line in self.source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.functions = 0
        self.visit(ast.parse(self.source))

    def span(self, node: Any) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        begin, end = self.span(node)
        return self.source[begin:end].decode()

    def add(self, begin: int, end: int, new: str) -> None:
        line = self.source.count(b"\n", 0, begin) + 1
        old = self.source[begin:end].decode()
        self.found.append(Mutant(self.file, line, begin, end, old, new, at_import=not self.functions))

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """Replace the operator between two operands; what is left of the parentheses around them stays."""
        begin, end = self.span(left)[1], self.span(right)[0]
        pattern = re.escape(old).replace(r"\ ", r"\s+")
        self.add(begin, end, re.sub(pattern, new, self.source[begin:end].decode(), count=1))

    def drop_one_of(self, nodes: list[Any], parents: Any) -> None:
        """Drop each of several items that commas separate."""
        for number, node in enumerate(nodes):
            begin, end = self.span(node)
            after = re.compile(rb"\s*,\s*").match(self.source, end)
            before = re.search(rb",\s*$", self.source[:begin])
            if after:
                self.add(begin, after.end(), "")
            elif before and number:
                self.add(before.start(), end, "")
            elif isinstance(parents, ast.Call):
                self.add(begin, end, "")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(part)
        self.functions += 1
        for statement in node.body:
            self.visit(statement)
        self.functions -= 1

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self.add(*self.span(node), "pass")
            self.generic_visit(node)
        elif isinstance(node.value, ast.Yield):
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        in_settings = self.file.endswith("settings.py") and isinstance(target, ast.Name) and target.id.isupper()
        if isinstance(target, ast.Attribute | ast.Subscript) or in_settings:
            self.add(*self.span(node), "pass")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add(*self.span(node), "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add(*self.span(node), "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value and not isinstance(node.value, ast.Constant):
            self.add(*self.span(node.value), "None")
            self.visit(node.value)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        if self.text(node.test) == "TYPE_CHECKING":
            return
        for word in ("False and", "True or"):
            self.add(*self.span(node.test), f"{word} ({self.text(node.test)})")
        self.generic_visit(node)

    visit_IfExp = visit_If  # noqa: N815 (ast's name)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, right, operator in zip([node.left, *node.comparators], node.comparators, node.ops, strict=False):
            self.between(left, right, *COMPARED[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in CALCULATED:
            self.between(node.left, node.right, *CALCULATED[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, *words)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.add(*self.span(node), f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(*self.span(node), str(not node.value))
        elif isinstance(node.value, int | float):
            off_by_one = node.value + 1 if node.value < 10 else node.value * 10
            self.add(*self.span(node), repr(off_by_one))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What a sentence says is left as it is."""

    def visit_Call(self, node: ast.Call) -> None:
        if self.text(node.func) == "dataclass":
            return
        keywords = [keyword for keyword in node.keywords if keyword.arg not in WORDS_ONLY]
        self.drop_one_of(keywords, node)
        for part in [node.func, *node.args, *(keyword.value for keyword in keywords)]:
            self.visit(part)

    def visit_Tuple(self, node: ast.Tuple | ast.Set | ast.List) -> None:
        if len(node.elts) > 1 and not isinstance(getattr(node, "ctx", None), ast.Store):
            self.drop_one_of(node.elts, node)
        self.generic_visit(node)

    visit_Set = visit_List = visit_Tuple  # noqa: N815 (ast's names)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if key:
                begin, end = self.span(key)[0], self.span(value)[1]
                after = re.compile(rb"\s*,\s*").match(self.source, end)
                self.add(begin, after.end() if after else end, "")
        self.generic_visit(node)


# --- Trying them ---


PRELOADED = ("celery.app.task", "django.contrib.admin", "django.test", "kombu", "playwright.sync_api", "redis")
"""Imported once and inherited by every fork: a third of the time of a short run."""


def run(
    copy: Path, arguments: list[str], variables: Mapping[str, str], *, seconds: float | None = None
) -> tuple[int | None, str]:
    """Run pytest in a fork, in the copy; returns its exit code, None when it had to be killed, and its output."""
    with tempfile.TemporaryFile("w+") as output:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                atexit._clear()  # the parent's servers are the parent's to stop
                os.chdir(copy)
                os.environ.update(variables)
                sys.path[:] = [str(copy), *(path for path in sys.path if Path(path).resolve() != ROOT)]
                for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "sandbox")]:
                    del sys.modules[name]
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                code = pytest.main(["-p", "tests.mutants", "-p", "no:cacheprovider", "-q", *arguments])
                atexit._run_exitfuncs()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        end = None if seconds is None else time.monotonic() + seconds
        while not (waited := os.waitpid(pid, os.WNOHANG))[0]:
            if end is not None and time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.05)
        output.seek(0)
        return os.waitstatus_to_exitcode(waited[1]) if waited[0] else None, output.read()


class Trial:
    """Tries mutants in a copy of the project."""

    def __init__(self, copy: Path, servers: dict[str, str], *, fast: bool) -> None:
        self.copy, self.servers, self.fast, self.chosen = copy, servers, fast, copy / ".chosen.json"
        self.stamp = int(time.time())
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.seconds: dict[str, float] = defaultdict(float)

    def learn(self, record: Path) -> None:
        """Run the fast suite once, and learn which tests run which line."""
        failed = set()
        if not record.exists():
            record.mkdir()
            # Without the servers: the tests of two processes need two databases.
            code, output = run(self.copy, ["-n", "2"], {RECORD: str(record)})
            if code:
                say(output[-3000:])
            failed = set(re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE))
        for file in record.glob("*.json"):
            learnt = json.loads(file.read_text())
            self.seconds |= learnt["seconds"]
            for name, lines in learnt["lines"].items():
                for line, tests in lines.items():
                    self.lines[name][int(line)] |= set(tests) - failed - {""}

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutant's line, the quickest first; those of its module for a line run at import."""
        lines = self.lines[mutant.file]
        found = lines[mutant.line]
        if mutant.at_import or not found:
            found = set().union(*lines.values())
        return sorted(found, key=lambda test: self.seconds[test])

    def in_process(self, mutants: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Try the mutants of functions in one process; yields each with who noticed it, "?" for a file to change."""
        todo = {number: mutant for number, mutant in enumerate(mutants) if not mutant.at_import}
        tried = self.copy / ".tried"
        while todo:
            tried.with_suffix(".done").unlink(missing_ok=True)
            tests = {number: self.tests_of(mutant) for number, mutant in todo.items()}
            rows = [
                (number, mutant.file, mutant.begin, mutant.end, mutant.new, tests[number], self.patience(tests[number]))
                for number, mutant in todo.items()
            ]
            tried.with_suffix(".todo").write_text(json.dumps(rows))
            files = sorted({test.partition("::")[0] for names in tests.values() for test in names})
            options = ["-p", "no:randomly", "--reuse-db", *files]
            _, output = run(
                self.copy,
                options,
                {**self.servers, TRIED: str(tried)},
                seconds=120 + sum(row[-1] for row in rows),
            )
            told = tried.with_suffix(".done")
            begun = None
            for line in told.read_text().splitlines() if told.exists() else []:
                number, by = line.split("\t")
                begun = int(number) if by == "begun" else None
                if by != "begun":
                    yield todo.pop(int(number)), by
            if begun is not None:  # it ended the process
                yield todo.pop(begun), "?"
            elif todo and not begun:
                say(output[-3000:])
                break
        yield from ((mutant, "?") for mutant in [*todo.values(), *(one for one in mutants if one.at_import)])

    def patience(self, tests: list[str]) -> float:
        """Seconds after which the tests count as hanging."""
        return SECONDS + 2 * sum(self.seconds[test] for test in tests)

    def notices(self, mutant: Mutant) -> str:
        """Who noticed the mutant, "" when nobody did, or "hang"."""
        original = (self.copy / mutant.file).read_bytes()
        self.write(mutant.file, original[: mutant.begin] + mutant.new.encode() + original[mutant.end :])
        try:
            tests = self.tests_of(mutant)
            self.chosen.write_text(json.dumps(tests))
            files = sorted({test.partition("::")[0] for test in tests})
            options = ["-x", "-p", "no:randomly", "--reuse-db"]
            chosen = {**self.servers, CHOSEN: str(self.chosen)}
            code, output = run(self.copy, [*options, *files], chosen, seconds=self.patience(tests))
            if code in (0, 5) and not self.fast:  # passed; no test
                files = [f"tests/{name}.py" for name in PROCESSES[mutant.file]]
                options += ["-m", "not docker"]
                code, output = run(self.copy, [*options, *files], self.servers, seconds=10 * SECONDS)
        finally:
            self.write(mutant.file, original)
        if code is None:
            return "hang"
        if code in (0, 5):
            return ""
        name = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        return name[1] if name else "the start"

    def write(self, file: str, content: bytes) -> None:
        """Write a file with a time of its own, because Python compares seconds before it compiles a file again."""
        path = self.copy / file
        path.write_bytes(content)
        self.stamp += 2
        os.utime(path, (self.stamp, self.stamp))


def copy_project(to: Path) -> None:
    """Copy the files that git has, or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 (git of the PATH)
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def say(*lines: object) -> None:
    """Write lines to stdout at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="how many mutants, chosen by chance; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-least", type=float, default=95, help="fail when fewer per cent are noticed")
    parser.add_argument("--record", type=Path, help="keep there which tests run which line, or take it from there")
    parser.add_argument("--fast", action="store_true", help="without the tests that run the code in other processes")
    parser.add_argument("--list", action="store_true", help="only show the mutants")
    parser.add_argument(
        "--line", action="append", default=[], metavar="FILE:LINE", help="only the mutants of this line"
    )
    parser.add_argument("files", nargs="*", default=[*PROCESSES], help="the modules to change")
    options = parser.parse_args()

    mutants = [mutant for file in options.files for mutant in Finder(file).found]
    if options.line:
        mutants = [mutant for mutant in mutants if f"{mutant.file}:{mutant.line}" in options.line]
    total = len(mutants)
    if options.count and not options.line:
        mutants = random.Random(options.seed).sample(mutants, min(options.count, total))
    say(f"{len(mutants)} of {total} mutants, seed {options.seed}")
    if options.list:
        say(*mutants)
        return

    from sandbox import servers

    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory, servers.postgres() as database:
        copy = Path(directory)
        copy_project(copy)
        trial = Trial(copy, {"TEST_DATABASE_URL": database}, fast=options.fast)
        trial.learn(options.record or copy / ".record")
        survivors = []
        for number, (mutant, by) in enumerate(trial.in_process(mutants), 1):
            who = trial.notices(mutant) if by == "?" or (not by and not options.fast) else by
            if who in ("", "hang"):
                survivors.append(mutant)
            say(f"{number:4} {who or 'SURVIVED':60.60} {mutant}")
    noticed = len(mutants) - len(survivors)
    share = 100 * noticed / len(mutants)
    say(f"{noticed} of {len(mutants)} noticed, {share:.1f} %. Survivors:", *survivors)
    sys.exit(share < options.at_least)


if __name__ == "__main__":
    main()
