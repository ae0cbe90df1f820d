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
        answer: what its shell said about its kernel last, if it was asked.
        inventory: what the first guest of its kind said when it was ready.
        folder: where its files are, below the folder of artifacts.
    """

    guest: Guest
    folder: str
    complaints: list[Complaint] = field(default_factory=list)
    answer: Answer | None = None
    inventory: Answer | None = None


FRESH = pytest.StashKey[list[Complaint]]()
"""What was found in the phase of a test that runs now, and no report has told."""
ACCOUNTS = pytest.StashKey[dict[Guest, GuestAccount]]()
"""The guests of a test, shared ones included."""


def account_of(item: pytest.Item, guest: Guest, folder: str) -> GuestAccount:
    """What a guest has shown during a test.

    Args:
        item: the test that runs now.
        guest: a guest of the test or of its module.
        folder: where the guest's files are, below the folder of artifacts.
    """
    return item.stash.setdefault(ACCOUNTS, {}).setdefault(guest, GuestAccount(guest, folder))


def note(
    item: pytest.Item, account: GuestAccount, inspection: Inspection, known: Sequence[KnownComplaint]
) -> None:
    """Write down for a test what a look at a guest has shown.

    Args:
        item: the test that runs now.
        account: what the guest has shown before.
        inspection: what was found.
        known: complaints that are known, and no failure for a time.

    Raises:
        ConfigError: the test's mark is wrong.
    """
    guest = account.guest
    account.answer = inspection.answer or account.answer
    expected = (*guest.spec.expect_kernel, *(merged_mark(item).expect_kernel or ()))
    found = [_judged(guest.name, finding, expected, known) for finding in inspection.findings]
    account.complaints += found
    item.stash.setdefault(FRESH, []).extend(found)


def _judged(
    guest: str, finding: Finding, expected: Sequence[Expectation], known: Sequence[KnownComplaint]
) -> Complaint:
    return Complaint(guest, finding, excuse(finding, expected, known, datetime.now(UTC).date()))
