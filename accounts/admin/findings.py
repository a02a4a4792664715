"""Where a finding of ``accounts.health`` leads: to the row or list that it is about, and to what to do."""

from dataclasses import dataclass

from django.urls import reverse

from accounts.health import Finding
from accounts.models import ExpiryRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A link below a finding."""

    text: str
    url: str


LISTS = {
    "stale": ("Due accounts", "account", {"trial": "due"}),
    "overdue": ("Due accounts", "account", {"trial": "due"}),
    "paused": ("History", "decision", {}),
    "mails-waiting": ("Waiting mails", "notice", {"status__exact": "pending"}),
    "mails-given-up": ("Mails given up", "notice", {"status__exact": "given_up"}),
}


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
