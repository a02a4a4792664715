"""The names in the documentation exist."""

import os
import re
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import get_commands
from django.db.models import Model

PAGES = [*sorted(settings.BASE_DIR.glob("*.md")), *sorted((settings.BASE_DIR / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"(?:\./manage\.py|python manage\.py|/manage\.py) (\w+)", page.read_text()))

    assert named <= set(get_commands())


def test_manage_py_can_be_called_by_its_name() -> None:
    assert os.access(settings.BASE_DIR / "manage.py", os.X_OK)


@pytest.mark.parametrize("model", list(apps.get_app_config("accounts").get_models()), ids=lambda model: model.__name__)
def test_the_diagram_shows_every_field_of_every_model(model: type[Model]) -> None:
    _, _, node = (
        (settings.BASE_DIR / "docs" / "models.svg").read_text().partition(f"<!-- accounts_models_{model.__name__} -->")
    )
    shown = set(re.findall(r">(\w+)</text>", node.partition("</g>")[0]))

    assert {field.name for field in model._meta.fields} <= shown, "the diagram is out of date: make models"
