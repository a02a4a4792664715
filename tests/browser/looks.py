"""How a page looks: at each width, light and dark, the rules of axe, and whether anything overflows."""

from collections.abc import Iterator
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

DJANGOS = {("label-title-only", "#searchbar")}
"""Violations in Django's own templates: a rule and a selector. The search field has a picture as its label."""

WIDTHS = (1440, 768, 390)


def violations(page: Page) -> Iterator[tuple[str, str, str]]:
    """Rule, selector and text of each element that violates a rule of axe."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    for rule in found:
        for node in rule["nodes"]:
            selector = " ".join(map(str, node["target"]))
            if (rule["id"], selector) not in DJANGOS:
                yield rule["id"], selector, node["html"][:100]


def views(page: Page, path: str) -> Iterator[str]:
    """Show the page in each colour scheme and width; yields their name.

    It is loaded anew for a scheme, because the admin's colours change in a transition.
    """
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        answer = page.goto(path)
        assert answer is None or answer.ok, path
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            yield f"{width}-{scheme}"


OVERFLOWS = """[document.documentElement, ...document.querySelectorAll(".results")]
    .some(element => element.scrollWidth > element.clientWidth)"""
