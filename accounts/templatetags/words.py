"""The formatters of ``accounts.words`` as template filters."""

from datetime import datetime

from django import template

from accounts import words

register = template.Library()
register.filter(words.number)
register.filter(words.number_up_to)
register.filter(words.duration)


@register.filter
def moment(at: datetime | None, precision: str = "minutes") -> str:
    """``{{ run.as_of|moment }}``, or ``{{ run.started|moment:"seconds" }}``."""
    return words.moment(at, seconds=precision == "seconds")


@register.filter
def plural(count: int, nouns: str) -> str:
    """``{{ count|plural:"account" }}``, or with an irregular plural ``{{ count|plural:"entry,entries" }}``."""
    return words.plural(count, *nouns.split(","))
