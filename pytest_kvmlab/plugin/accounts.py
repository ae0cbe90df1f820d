"""What the guests of a test showed, kept with the test until its end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from pytest_kvmlab.kernel_log.finding import Finding
from pytest_kvmlab.kernel_log.question import Answer
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.kernel_watch import Inspection
from pytest_kvmlab.plugin.asked import merged_mark
from pytest_kvmlab.report.kernel import Complaint
from pytest_kvmlab.spec.expectation import Expectation
from pytest_kvmlab.spec.known_issues import KnownComplaint, excuse


@dataclass
class GuestAccount:
    """What one guest showed during a test.

    Attributes:
        guest: the guest, which may be gone.
        complaints: what its kernel complained about, with excuses.
        answer: what its shell said about its kernel last.
        folder: where its files are, below the folder of artifacts.
    """

    guest: Guest
    folder: str
    complaints: list[Complaint] = field(default_factory=list)
    answer: Answer | None = None


FRESH = pytest.StashKey[list[Complaint]]()
"""What was found in the phase of a test that runs now, and no report has told."""
ACCOUNTS = pytest.StashKey[dict[Guest, GuestAccount]]()
"""The guests of a test, shared ones included."""


def note(
    item: pytest.Item, guest: Guest, inspection: Inspection, known: Sequence[KnownComplaint], folder: str
) -> None:
    """Write down for a test what a look at a guest has shown.

    Args:
        item: the test that runs now.
        guest: a guest of the test or of its module.
        inspection: what was found.
        known: complaints that are known, and no failure for a time.
        folder: where the guest's files are, below the folder of artifacts.

    Raises:
        ConfigError: the test's mark is wrong.
    """
    account = item.stash.setdefault(ACCOUNTS, {}).setdefault(guest, GuestAccount(guest, folder))
    account.answer = inspection.answer or account.answer
    expected = (*guest.spec.expect_kernel, *(merged_mark(item).expect_kernel or ()))
    found = [_judged(guest.name, finding, expected, known) for finding in inspection.findings]
    account.complaints += found
    item.stash.setdefault(FRESH, []).extend(found)


def _judged(
    guest: str, finding: Finding, expected: Sequence[Expectation], known: Sequence[KnownComplaint]
) -> Complaint:
    return Complaint(guest, finding, excuse(finding, expected, known, datetime.now(UTC).date()))
