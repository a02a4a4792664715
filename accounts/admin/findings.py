"""The findings of ``accounts.health`` on the overview: what they say of access, and where each leads."""

from dataclasses import dataclass, replace

from django.urls import reverse

from accounts.health import Finding, Health
from accounts.models import ExpiryRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A link below a finding."""

    text: str
    url: str


LISTS = {
    "stale": ("Due accounts", "account", {"trial": "due"}),
    "overdue": ("Due accounts", "account", {"trial": "due"}),
    "on-hold": ("Due accounts", "account", {"trial": "due"}),
    "paused": ("History", "decision", {}),
    "mails-waiting": ("Waiting mails", "notice", {"status__exact": "pending"}),
    "mails-given-up": ("Mails given up", "notice", {"status__exact": "given_up"}),
}


SAYS_WHY = frozenset({"paused", "fuse", "clock"})
"""The rows of the findings that are why accounts are on hold."""


def of_overview(health: Health, *, on_hold: str) -> list[Finding]:
    """Problems, then notes; and that accounts still have access, in the finding that is why, else in one of its own.

    Args:
        on_hold: ``access.why_on_hold``.
    """
    found = health.problems + health.notes
    why = next((finding for finding in found if finding.row in SAYS_WHY), None)
    if not on_hold:
        return found
    if not why:
        text = f"Accounts whose trial is over still have access, because {on_hold}."
        return [*found, Finding(text=text, row="on-hold", is_problem=False)]
    told = replace(why, text=f"{why.text} Accounts whose trial is over still have access.")
    return [told if finding is why else finding for finding in found]


def links(finding: Finding) -> list[Link]:
    """Where to look at what a finding is about, and its row of the page that says what to do."""
    found = []
    if row := finding.about:
        name = "Run" if isinstance(row, ExpiryRun) else "Account"
        url = reverse(f"admin:accounts_{row._meta.model_name}_change", args=[row.pk])
        found.append(Link(text=f"{name} {row.pk}", url=url))
    if finding.row in LISTS:
        text, model, query = LISTS[finding.row]
        found.append(Link(text=text, url=reverse(f"admin:accounts_{model}_changelist", query=query)))
    return [*found, Link(text="What to do", url=f"{reverse('admin:what_to_do')}#{finding.row}")]
