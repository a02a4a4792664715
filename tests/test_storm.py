"""The bugs that `make storm-proof` plants still fit the code."""

import pytest

from tests.storm.planted import BUGS, Bug, require_that_it_fits


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_text_that_a_planted_bug_replaces_occurs_once(bug: Bug) -> None:
    require_that_it_fits(bug)
