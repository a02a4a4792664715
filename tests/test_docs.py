"""What the documentation names exists."""

import re
from pathlib import Path

import pytest
from django.conf import settings

PAGES = [settings.BASE_DIR / "README.md", *sorted((settings.BASE_DIR / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    source = "".join(file.read_text() for file in (settings.BASE_DIR / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))

    assert {name for name in named if f"def {name}(" not in source} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_of_make_that_a_page_names_exists(page: Path) -> None:
    verbs = set(re.findall(r"^(\S+):.*## ", (settings.BASE_DIR / "Makefile").read_text(), re.MULTILINE)) | {".venv"}

    assert set(re.findall(r"(?:`|^\$ |^)make (\S+?)[`\s]", page.read_text(), re.MULTILINE)) <= verbs
