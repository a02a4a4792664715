"""A mail server that writes down each mail it takes, and cuts the connection at every point."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from sandbox.mail_server import Mailbox, _Controller, _Handler
from sandbox.servers import free_port

FATES = ("mail", "rcpt", "data", "discarded", "unanswered", "450 busy", "451 later", "550 no such user")
"""Where a mail is cut, or the reply to it. ``data``: at any moment after the recipient; ``unanswered``: it is taken."""


class Server(_Handler):
    """One mail in four meets one of ``FATES``, one connection in twenty is cut at its greeting, while it is ``bad``."""

    def __init__(self, seed: int, file: Path) -> None:
        super().__init__(Mailbox("127.0.0.1", free_port()))
        self.random = Random(seed)
        self.bad = True
        self.away = False
        self.cuts = 0
        self.file = file.open("a")

    def cut(self, server: SMTP) -> str:
        self.cuts += 1
        server.transport.abort()  # type: ignore[union-attr]
        return "421 cut"

    async def handle_EHLO(  # noqa: N802 (aiosmtpd's name)
        self, server: SMTP, session: Any, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        if self.away or (self.bad and self.random.random() < 0.05):
            return [self.cut(server)]
        session.since = time.time()
        return await super().handle_EHLO(server, session, envelope, hostname, responses)

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        session.asked = time.time()
        fate = self.random.choice(FATES) if self.bad and self.random.random() < 0.25 else ""
        if self.away or fate == "mail":
            return self.cut(server)
        session.fate = fate
        return await super().handle_MAIL(server, session, envelope, address, options)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if session.fate == "rcpt":
            return self.cut(server)
        if session.fate == "data":
            asyncio.get_running_loop().call_later(self.random.uniform(0, 0.003), self.cut, server)
        if session.fate[:1].isdigit():
            session.since = time.time()
            return str(session.fate)
        return await super().handle_RCPT(server, session, envelope, address, options)

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Envelope) -> str:  # noqa: N802
        if session.fate == "discarded":
            return self.cut(server)
        await asyncio.sleep(0.005)
        answered = session.fate not in ("data", "unanswered")
        # since: the sender had our last answer then, and had not asked yet whether this mail is still true.
        line = {"since": session.since, "asked": session.asked, "at": time.time(), "answered": answered}
        text = envelope.content.decode() if isinstance(envelope.content, bytes) else envelope.content
        self.file.write(json.dumps({**line, "mail": text}) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        session.since = time.time()
        return "250 OK" if answered else self.cut(server)


@contextmanager
def server(seed: int, file: Path) -> Iterator[Server]:
    """The server, until the block ends."""
    handler = Server(seed, file)
    controller = _Controller(handler, hostname=handler.state.host, port=handler.state.port)
    controller.start()
    try:
        yield handler
    finally:
        controller.stop()
