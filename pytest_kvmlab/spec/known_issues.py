"""Complaints of kernels and failures of tests that are known, and are none until a day."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.kernel_log.finding import Finding, Kind
from pytest_kvmlab.spec.expectation import Expectation, regular_expression
from pytest_kvmlab.spec.guest import Keys
from pytest_kvmlab.spec.text import Line
from pytest_kvmlab.spec.validation import validate

_LARGEST_FILE = 2**20


def _address(written: str) -> str:
    if not re.fullmatch(r"https?://\S+", written):
        raise ValueError("should be the address of a bug report: https://…")
    return written


class KnownIssue(Keys):
    """Why something stays green, where it is followed up, and the last day on which it does."""

    reason: Line
    link: Annotated[Line, AfterValidator(_address)]
    until: date

    def told(self, today: date) -> str:
        """The entry in a line, which says if it is over."""
        over = "" if today <= self.until else ", which is over"
        return f"known until {self.until}{over}: {self.reason} ({self.link})"


class KnownComplaint(KnownIssue):
    """Complaints of a kernel: those of a kind with a match of a regular expression in their title."""

    kind: Kind
    pattern: Annotated[Line, AfterValidator(regular_expression)]

    def covers(self, finding: Finding) -> bool:
        """Whether a complaint is one of these, whatever day it is."""
        return Expectation(self.kind, self.pattern).covers(finding)


class KnownTest(KnownIssue):
    """Tests that fail: an id, or a pattern as in a shell (`test_shop.py::*`)."""

    id: Line

    def covers(self, test: str) -> bool:
        """Whether a test is one of these, whatever day it is."""
        return test == self.id or fnmatchcase(test, self.id)


class KnownIssues(Keys):
    """The content of a file of known issues."""

    kernel: Annotated[tuple[KnownComplaint, ...], Field(max_length=1000)] = ()
    test: Annotated[tuple[KnownTest, ...], Field(max_length=1000)] = ()


def load_known_issues(path: Path) -> KnownIssues:
    """Read a file of known issues: tables `[[kernel]]` and `[[test]]`.

    Args:
        path: a TOML file.

    Returns:
        Its entries, those included that are over: a failure tells that they are.

    Raises:
        ConfigError: it cannot be read, is no TOML, or an entry lacks something or is wrong.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE).decode()
        return validate(KnownIssues, tomllib.loads(text), source=str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: no valid TOML: {error}", "see https://toml.io/en/v1.0.0") from None


@dataclass(frozen=True)
class Excuse:
    """Whether a complaint is no failure, and why.

    Attributes:
        holds: whether it is excused.
        why: `expected`, or the entry that knows it, also if that is over; empty if nothing is known of it.
    """

    holds: bool
    why: str


def excuse(
    finding: Finding, expected: Sequence[Expectation], known: Sequence[KnownComplaint], today: date
) -> Excuse:
    """Decide whether a complaint fails its test.

    Args:
        finding: the complaint.
        expected: what the test, its guest or its image expects.
        known: the known ones.
        today: entries whose `until` is this day still count.
    """
    if any(each.covers(finding) for each in expected):
        return Excuse(True, "expected")
    return _longest([each for each in known if each.covers(finding)], today)


def known_test(test: str, known: Sequence[KnownTest], today: date) -> Excuse:
    """Decide whether a test that fails now is a known issue.

    Args:
        test: its id.
        known: the known ones.
        today: entries whose `until` is this day still count.
    """
    return _longest([each for each in known if each.covers(test)], today)


def _longest(entries: Sequence[KnownIssue], today: date) -> Excuse:
    if not entries:
        return Excuse(False, "")
    entry = max(entries, key=lambda each: each.until)
    return Excuse(today <= entry.until, entry.told(today))
