"""A real mail server on the loopback interface that can be told how to answer, for demo, comparison and tests."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as modern
from typing import Any, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from sandbox.servers import free_port

Answer = Callable[[str], str | None]
"""Given the address: the answer to give, such as "550 no such user", or None to accept."""


def accept(address: str) -> None:
    """Accept everything."""


@dataclass
class Mailbox:
    """What the server has received, and what it is told to answer; both may be touched while it runs."""

    host: str
    port: int
    at_sender: Answer = accept
    """The answer to MAIL FROM, given the sender's address."""
    at_recipient: Answer = accept
    """The answer to RCPT TO. "drop" cuts the connection instead."""
    at_end: Answer = accept
    """The answer to the whole mail. "drop" cuts the connection instead, after the mail was thrown away."""
    seconds: float = 0
    """How long it takes to answer the whole mail."""
    per_connection: int | None = None
    """Mails taken on one connection; the next is answered by cutting it."""
    raw: list[bytes] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        """For the setting EMAIL_URL."""
        return f"smtp://{self.host}:{self.port}"

    @property
    def mails(self) -> list[EmailMessage]:
        """What was received, in order."""
        return [message_from_bytes(mail, policy=modern) for mail in list(self.raw)]

    @property
    def recipients(self) -> list[str]:
        """To whom, in order."""
        return [str(mail["To"]) for mail in self.mails]


class _Handler:
    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    async def handle_EHLO(  # noqa: N802 (aiosmtpd's name)
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.mailbox.connections += 1
        session.taken = 0  # type: ignore[attr-defined]
        return responses

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answer = self.mailbox.at_sender(address)
        if answer is None:
            envelope.mail_from = address
            return "250 OK"
        return self._say(server, answer)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        full = session.taken == self.mailbox.per_connection  # type: ignore[attr-defined]
        answer = "drop" if full else self.mailbox.at_recipient(address)
        if answer is None:
            envelope.rcpt_tos.append(address)
            return "250 OK"
        return self._say(server, answer)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        answer = self.mailbox.at_end(envelope.rcpt_tos[0])
        if self.mailbox.seconds:
            await asyncio.sleep(self.mailbox.seconds)
        if answer is None:
            self.mailbox.raw.append(cast("bytes", envelope.content))
            session.taken += 1  # type: ignore[attr-defined]
            return "250 OK"
        return self._say(server, answer)

    def _say(self, server: Any, answer: str) -> str:
        if answer == "drop":
            server.transport.abort()
        return answer


class _Controller(Controller):
    def factory(self) -> SMTP:
        return SMTP(self.handler, hostname="localhost", ident="mail")  # by default it asks the resolver for its name


@contextmanager
def mail_server(port: int | None = None) -> Iterator[Mailbox]:
    """A mail server on a free port of 127.0.0.1, or on ``port``; stopped at the end of the block."""
    mailbox = Mailbox("127.0.0.1", port or free_port())
    controller = _Controller(_Handler(mailbox), hostname=mailbox.host, port=mailbox.port)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()
