"""A real mail server on the loopback interface with configurable replies, for demo, comparison and tests."""

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

Reply = Callable[[str], str | None]
"""Takes an address and returns the reply, such as "550 no such user", None to accept, or "drop" to disconnect."""


def accept(address: str) -> None:
    """Accept every address."""


@dataclass
class Mailbox:
    """The mails that the server received, and its replies; both may be changed while it runs."""

    host: str
    port: int
    on_mail: Reply = accept
    """The reply to MAIL FROM; called with the sender's address."""
    on_rcpt: Reply = accept
    """The reply to RCPT TO; called with the recipient's address."""
    on_data: Reply = accept
    """The reply to the whole mail; called with its first recipient. A mail that is not accepted is discarded."""
    delay: float = 0
    """Seconds before the reply to the whole mail."""
    mails_per_connection: int | None = None
    """The server disconnects at the recipient of the next mail after this many."""
    received: list[bytes] = field(default_factory=list)
    """Every mail that was accepted, in order."""
    connections: int = 0

    @property
    def url(self) -> str:
        """The server's URL, for the setting EMAIL_URL."""
        return f"smtp://{self.host}:{self.port}"

    @property
    def mails(self) -> list[EmailMessage]:
        """The mails received, parsed."""
        return [message_from_bytes(mail, policy=modern) for mail in list(self.received)]

    @property
    def recipients(self) -> list[str]:
        """The recipients of the mails received."""
        return [str(mail["To"]) for mail in self.mails]


class _Handler:
    """The handler that aiosmtpd calls for each SMTP command."""

    def __init__(self, state: Mailbox) -> None:
        self.state = state

    async def handle_EHLO(  # noqa: N802 (aiosmtpd's name)
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.state.connections += 1
        session.accepted = 0  # type: ignore[attr-defined]
        return responses

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = self.state.on_mail(address)
        if reply is None:
            envelope.mail_from = address
        return _reply(server, reply)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        full = session.accepted == self.state.mails_per_connection  # type: ignore[attr-defined]
        reply = "drop" if full else self.state.on_rcpt(address)
        if reply is None:
            envelope.rcpt_tos.append(address)
        return _reply(server, reply)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        reply = self.state.on_data(envelope.rcpt_tos[0])
        if self.state.delay:
            await asyncio.sleep(self.state.delay)
        if reply is None:
            self.state.received.append(cast("bytes", envelope.content))
            session.accepted += 1  # type: ignore[attr-defined]
        return _reply(server, reply)


def _reply(server: Any, reply: str | None) -> str:
    if reply == "drop":
        server.transport.abort()
    return reply or "250 OK"


class _Controller(Controller):
    def factory(self) -> SMTP:
        return SMTP(self.handler, hostname="localhost", ident="mail")  # by default it resolves its own host name


@contextmanager
def mail_server(port: int | None = None) -> Iterator[Mailbox]:
    """A mail server on a free port of 127.0.0.1, or on ``port``; stopped at the end of the block."""
    state = Mailbox("127.0.0.1", port or free_port())
    controller = _Controller(_Handler(state), hostname=state.host, port=state.port)
    controller.start()
    try:
        yield state
    finally:
        controller.stop()
