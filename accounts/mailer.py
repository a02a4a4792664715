"""What the answer of a mail server, or of a mail provider with an HTTP API, means for one mail."""

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


class MailServerAwayError(Exception):
    """There is no connection to the mail server, or it takes no mail for now. No notice was lost."""


class Failure(Enum):
    """What a failed attempt says of a mail."""

    REFUSED = auto()
    """This mail, or its address, was refused for good."""
    UNANSWERED = auto()
    """The mail was handed over, and no answer came. It may have arrived, and SMTP has no way to ask."""
    PUT_OFF = auto()
    """It did not arrive, for a reason that is not its own and may pass."""


def open_connection(mailer: BaseEmailBackend) -> bool:
    """Connect to the mail server; False when the connection was open already, and may have been dropped since.

    Raises:
        MailServerAwayError: no connection could be opened.
    """
    try:
        return bool(mailer.open())
    except OSError as error:  # SMTPException is one, also for a wrong password
        raise MailServerAwayError(f"The mail server cannot be used: {reason(error)}") from error


def send(message: EmailMultiAlternatives, mailer: BaseEmailBackend) -> None:
    """Send over the open connection, which stays open only when the mail server answered.

    Raises:
        Exception: whatever the mail backend raised about this mail.
    """
    try:
        mailer.send_messages([message])
    except (SMTPResponseException, SMTPRecipientsRefused):
        raise  # an answer: the connection is in order
    except BaseException:
        # The answer may be on its way, and must not be taken for that to the next mail. So no goodbye either.
        if isinstance(smtp := getattr(mailer, "connection", None), SMTP):
            smtp.close()
        with suppress(OSError):
            mailer.close()
        raise


def meaning(error: Exception) -> Failure:
    """What an error of ``send`` says of the mail."""
    if _is_refusal(error):
        return Failure.REFUSED
    return Failure.UNANSWERED if _is_unanswered(error) else Failure.PUT_OFF


def was_dropped(error: Exception) -> bool:
    """Whether the mail server had closed the connection before the mail: a new one will do."""
    return (
        isinstance(error, SMTPServerDisconnected)
        and not _is_unanswered(error)
        and not any(isinstance(cause, TimeoutError) for cause in _causes(error))
    )


def reason(error: Exception) -> str:
    """The error in one line, as the mail server said it."""
    answers = [(error.smtp_code, error.smtp_error)] if isinstance(error, SMTPResponseException) else []
    if isinstance(error, SMTPRecipientsRefused):
        answers = list(error.recipients.values())
    words = [f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}" for code, text in answers]
    return " ".join("; ".join(words or [f"{type(error).__name__}: {error}"]).split())[:500]


MAIL_REFUSED_BY_HTTP = {400, 422}
"""Bad Request and Unprocessable Content. Others, such as 401, 403 and 429, are about the account at the provider."""


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    if isinstance(error, SMTPResponseException):
        return error.smtp_code >= 500 and not isinstance(error, SMTPSenderRefused)
    # The backends of django-anymail, which send by HTTP, are known by what their errors carry.
    if (
        getattr(error, "status_code", None) in MAIL_REFUSED_BY_HTTP
        or type(error).__name__ == "AnymailRecipientsRefused"
    ):
        return True
    if isinstance(error, OSError):
        return isinstance(error, SMTPNotSupportedError)
    return isinstance(error, ValueError)  # Django's word for an address that no server would take


def _is_unanswered(error: Exception) -> bool:
    if isinstance(error, SMTPServerDisconnected):
        # smtplib makes this of a timeout, too, and does not say at which step: the mail itself is sent by data().
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
