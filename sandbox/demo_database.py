"""The SQLite file of the demo: its path, and its creation, which never deletes another file."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from stat import S_ISREG
from urllib.parse import quote

from django.core.management.base import CommandError

APPLICATION_ID = int.from_bytes(b"demo")
"""Marks a file as the demo's. SQLite stores it in the file's header: https://www.sqlite.org/fileformat.html"""

DEFAULT = Path(__file__).resolve().parent.parent / "demo.sqlite3"


def path() -> Path:
    """The path in the variable DEMO_DATABASE, or ``demo.sqlite3`` beside manage.py."""
    return Path(os.environ.get("DEMO_DATABASE") or DEFAULT).absolute()


def url() -> str:
    """The same file as a DATABASE_URL."""
    return f"sqlite:///{quote(str(path()))}"


def create_anew(file: Path) -> None:
    """Replace the demo's database at ``file`` by an empty one with the demo's application id.

    Raises:
        CommandError: another file is there, or the file cannot be written. Nothing was deleted.
    """
    try:
        _delete(file)
        with closing(sqlite3.connect(":memory:")) as empty:
            empty.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            content = empty.serialize()
        with file.open("xb") as new:  # fails if another process created the file meanwhile, or it is a link
            new.write(content)
    except OSError as error:
        raise CommandError(f"The demo cannot write its database {file}: {error.strerror}.") from None


def _delete(file: Path) -> None:
    parts = [Path(f"{file}{suffix}") for suffix in ("-wal", "-shm", "")]  # the database itself is deleted last
    there = [part for part in parts if os.path.lexists(part)]
    if not there:
        return
    if not all(S_ISREG(part.lstat().st_mode) for part in there) or not _is_the_demos(file):
        raise CommandError(
            f"{file} is not a database that the demo made, so the demo does not replace it. "
            "Delete it yourself, or name another file in DEMO_DATABASE."
        )
    for part in there:
        part.unlink()


def _is_the_demos(file: Path) -> bool:
    try:
        with file.open("rb") as database:
            header = database.read(100)
    except FileNotFoundError:
        return False
    return header.startswith(b"SQLite format 3\0") and header[68:72] == APPLICATION_ID.to_bytes(4)
