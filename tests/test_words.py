"""Moments, numbers, counts and durations as pages and messages write them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from django.template import Context, Template

from accounts.words import duration, moment, number, number_up_to, plural, time_left

DAY, HOUR, MINUTE, SECOND = (timedelta(**{unit: 1}) for unit in ("days", "hours", "minutes", "seconds"))
AT = datetime(2026, 11, 4, 2, 41, 7, tzinfo=UTC)


def test_a_moment_is_told_in_utc_to_the_minute_or_the_second() -> None:
    assert moment(AT) == "4 November 2026, 02:41 UTC"
    assert moment(AT, seconds=True) == "4 November 2026, 02:41:07 UTC"
    assert moment(AT.astimezone(timezone(timedelta(hours=9)))) == moment(AT)
    assert moment(None) == "\N{EN DASH}"


def test_django_writes_a_date_as_the_project_does_and_never_by_month_first() -> None:
    in_tokyo = AT.astimezone(timezone(timedelta(hours=9)))

    written = Template("{{ moment }}; {{ moment.date }}").render(Context({"moment": in_tokyo}))

    assert written == "4 November 2026, 02:41 UTC; 4 November 2026"


def test_numbers_have_their_thousands_separated() -> None:
    assert [number(999), number(51234), number(-1000), number(1234.5678)] == ["999", "51,234", "-1,000", "1,235"]


def test_a_count_that_stopped_has_a_plus() -> None:
    assert [number_up_to(*count) for count in ((9_999, 10_000), (10_000, 10_000), (10_000, None))] == [
        *("9,999", "10,000+", "10,000"),
    ]


def test_a_count_has_its_noun_in_the_singular_or_the_plural() -> None:
    assert [plural(count, "account") for count in (0, 1, 2, 51234)] == [
        *("0 accounts", "1 account", "2 accounts", "51,234 accounts"),
    ]
    assert [plural(count, "entry", "entries") for count in (1, 2)] == ["1 entry", "2 entries"]
    assert [plural(count, "account", most=1000) for count in (1000, 1001)] == [
        "1,000 accounts",
        "more than 1,000 accounts",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 ms"),
        (0.0634, "63 ms"),
        (4.24, "4.2 s"),
        (35.4, "35 s"),
        (5400, "90 min"),
        (9000, "2.5 h"),
        (1.0, "1 s"),
        (2100, "35 min"),
        (950400, "11 days"),
    ],
)
def test_durations_are_told_in_words(seconds: float, words: str) -> None:
    assert duration(timedelta(seconds=seconds)) == words


def test_templates_say_the_same_by_filters() -> None:
    template = Template(
        "{% load words %}{{ at|moment }}; {{ at|moment:'seconds' }}; {{ count|number }}; "
        "{{ count|plural:'account' }}; {{ count|plural:'entry,entries' }}; {{ took|duration }}"
    )

    text = template.render(Context({"at": AT, "count": 1234, "took": timedelta(seconds=63)}))

    assert text == (
        "4 November 2026, 02:41 UTC; 4 November 2026, 02:41:07 UTC; 1,234; 1,234 accounts; 1,234 entries; 63 s"
    )


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (7 * DAY, "in 7 days"),
        (7 * DAY - HOUR + SECOND, "in 7 days"),
        (7 * DAY - HOUR, "in 6 days"),
        (2 * DAY, "in 2 days"),
        (2 * DAY - SECOND, "in 48 hours"),
        (2 * DAY - MINUTE, "in 47 hours"),
        (34.9 * HOUR, "in 34 hours"),
        (2 * HOUR, "in 2 hours"),
        (2 * HOUR - SECOND, "in 119 minutes"),
        (90 * MINUTE, "in 90 minutes"),
        (60 * SECOND, "in 1 minute"),
        (SECOND, "in less than a minute"),
        (timedelta(0), "in less than a minute"),
        (-SECOND, "less than a minute ago"),
        (-3 * DAY, "3 days ago"),
    ],
)
def test_the_time_left_names_no_day_and_no_hour_that_is_not_whole(left: timedelta, text: str) -> None:
    assert time_left(AT, AT + left) == text
