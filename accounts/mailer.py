"""Sends a mail, and classifies the answer of a mail server or of a mail provider with an HTTP API."""

from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto
from smtplib import (
    SMTP,
    SMTPNotSupportedError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)
from traceback import walk_tb

from django.core.mail import EmailMultiAlternatives
from django.core.mail.backends.base import BaseEmailBackend

from accounts.log import one_line


class MailServerAwayError(Exception):
    """The mail server cannot be reached, or accepts no mail for now. No notice was lost."""


class Failure(Enum):
    """The kinds of failed attempts."""

    REFUSED = auto()
    """The server permanently refused this mail or its address."""
    UNANSWERED = auto()
    """The mail was sent, and no answer came. It may have arrived; SMTP has no command to find out."""
    DEFERRED = auto()
    """The mail did not arrive, for a temporary reason that it did not cause."""


def open_connection(mailer: BaseEmailBackend) -> bool:
    """Connect to the mail server; False when the connection was already open, and may have been closed since.

    Raises:
        MailServerAwayError: no connection could be opened.
    """
    try:
        return bool(mailer.open())
    except OSError as error:  # the base class of SMTPException, also of the one for a wrong password
        raise MailServerAwayError(f"The mail server cannot be used: {reason(error)}") from error


def send(message: EmailMultiAlternatives, mailer: BaseEmailBackend) -> None:
    """Send over the open connection, which stays open only when the mail server answered.

    Raises:
        Exception: the exception of the mail backend, of any type.
    """
    try:
        mailer.send_messages([message])
    except (SMTPResponseException, SMTPRecipientsRefused):
        raise  # an answer: the connection is still usable
    except BaseException:
        # The answer may still arrive, and must not be read as the answer to the next mail. So no QUIT is sent either.
        if isinstance(smtp := getattr(mailer, "connection", None), SMTP):
            smtp.close()
        with suppress(OSError):
            mailer.close()
        raise


def meaning(error: Exception) -> Failure:
    """Classify an error that ``send`` raised."""
    if _is_refusal(error):
        return Failure.REFUSED
    return Failure.UNANSWERED if _is_unanswered(error) else Failure.DEFERRED


def was_dropped(error: Exception) -> bool:
    """Whether the mail server closed the connection before the mail was sent, so that it can be sent over a new one."""
    return (
        isinstance(error, SMTPServerDisconnected)
        and not _is_unanswered(error)
        and not any(isinstance(cause, TimeoutError) for cause in _causes(error))
    )


def reason(error: Exception) -> str:
    """The error in one line, in the words of the mail server."""
    answers = [(error.smtp_code, error.smtp_error)] if isinstance(error, SMTPResponseException) else []
    if isinstance(error, SMTPRecipientsRefused):
        answers = list(error.recipients.values())
    words = [f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}" for code, text in answers]
    return one_line("; ".join(words or [f"{type(error).__name__}: {error}"]), most=500)


MAIL_REFUSED_BY_HTTP = {400, 422}
"""Bad Request and Unprocessable Content. Others, such as 401, 403 and 429, concern the account at the provider."""


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    if isinstance(error, SMTPResponseException):
        return error.smtp_code >= 500 and not isinstance(error, SMTPSenderRefused)
    # The errors of django-anymail's backends, which send by HTTP, have a status code or this name.
    if (
        getattr(error, "status_code", None) in MAIL_REFUSED_BY_HTTP
        or type(error).__name__ == "AnymailRecipientsRefused"
    ):
        return True
    if isinstance(error, OSError):
        return isinstance(error, SMTPNotSupportedError)
    return isinstance(error, ValueError)  # raised by Django for an address that no server would accept


def _is_unanswered(error: Exception) -> bool:
    if isinstance(error, SMTPServerDisconnected):
        # smtplib also raises this on a timeout, without the step at which it happened; data() sends the mail itself.
        return any(frame.f_code is SMTP.data.__code__ for frame, _ in walk_tb(error.__traceback__))
    causes = list(_causes(error))
    never_connected = any(
        isinstance(cause, ConnectionRefusedError) or type(cause).__name__ == "ConnectTimeout" for cause in causes
    )
    return not never_connected and any(isinstance(cause, TimeoutError | ConnectionError) for cause in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__
