"""The line of the report header about clean guests."""

import pytest

from pytest_kvmlab.report.clean_guests import clean_guests_line
from pytest_kvmlab.spec.options import KeepTemplates, Reset


@pytest.mark.parametrize(
    ("reset", "own_host", "templates", "told"),
    [
        (
            "auto",
            True,
            "run",
            "clone is tried first, * (templates for the run, pool of 3), then rewind, then boot; *",
        ),
        ("auto", False, "run", "rewind is tried first, * no clones on a libvirt of others, then boot; *"),
        ("clone", True, "keep", "clone, as asked for (templates kept for later runs, pool of 3)"),
        ("rewind", True, "run", "rewind, as asked for"),
        ("boot", True, "run", "boot, as asked for"),
    ],
)
def test_the_header_says_which_way_is_taken_and_why(
    reset: Reset, own_host: bool, templates: KeepTemplates, told: str
) -> None:
    line = clean_guests_line(reset, own_host=own_host, templates=templates, pool=3)
    pytest.LineMatcher([line]).fnmatch_lines([told])
