"""A database that does not answer: the sentence that says so, and the answer of a page that needs it."""

from collections.abc import Callable
from functools import wraps

from django.db import Error, connection
from django.http import HttpRequest, HttpResponse
from django.utils.log import log_response

from accounts.log import one_line

View = Callable[[HttpRequest], HttpResponse]

DATABASE_AWAY = "The database does not answer."
"""For whoever asks a page; the log names the database and the reason."""


def explanation(error: Error) -> str:
    """Which database does not answer, and the reason that its driver gives, in one line."""
    place = "{NAME} at {HOST} port {PORT}" if connection.settings_dict["HOST"] else "{NAME}"
    database = place.format(**connection.settings_dict)
    return f"The database {database} does not answer ({one_line(str(error), most=1000)})."


def answered_without_database(view: View) -> View:
    """Answer with status 503 and one sentence, and log one line, when the database fails the view."""

    @wraps(view)
    def answer(request: HttpRequest) -> HttpResponse:
        try:
            return view(request)
        except Error as error:
            response = HttpResponse(
                f"{DATABASE_AWAY}\n",
                status=503,
                content_type="text/plain; charset=utf-8",
                headers={"Cache-Control": "no-store"},
            )
            log_response("%s: %s", request.path, explanation(error), response=response, request=request)
            return response

    return answer
