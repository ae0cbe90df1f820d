"""How tests went before, and how they go now."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_kvmlab.spec.known_issues import Excuse
from pytest_kvmlab.spec.run_record import RunRecord, TestRecord

Change = Literal["newly failing", "flaky", "newly passing", "gone", "new", "now skipped", "still failing"]
NOT_KNOWN = Excuse(False, "")
_GOOD = ("passed", "xfailed")
_BAD = ("failed", "error", "xpassed")


@dataclass(frozen=True)
class TestChange:
    """A test that does not go as it went.

    Attributes:
        id: the test's id.
        change: in which way.
        before: its outcomes before, each once.
        after: its outcomes now, each once.
        message: what failed, if it fails now.
        known: whether it is a known issue, and which.
    """

    __test__ = False  # not one of pytest's own

    id: str
    change: Change
    before: tuple[str, ...]
    after: tuple[str, ...]
    message: str
    known: Excuse = NOT_KNOWN


def test_changes(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> list[TestChange]:
    """List the tests that do not go as they went, and those that fail as before.

    Args:
        before: the runs to compare with.
        after: the runs of now.
    """
    earlier, later = _by_id(before), _by_id(after)
    changes = (_change(name, earlier.get(name, []), later.get(name, [])) for name in {**earlier, **later})
    return [change for change in changes if change]


def _by_id(runs: Iterable[RunRecord]) -> dict[str, list[TestRecord]]:
    tests = defaultdict(list)
    for run in runs:
        for test in run.tests:
            tests[test.id].append(test)
    return tests


def _change(name: str, before: Sequence[TestRecord], after: Sequence[TestRecord]) -> TestChange | None:
    change = _kind(before, after)
    if change is None:
        return None
    message = next((test.message for test in after if test.outcome in _BAD), "")
    return TestChange(name, change, _outcomes(before), _outcomes(after), message)


def _kind(before: Sequence[TestRecord], after: Sequence[TestRecord]) -> Change | None:
    if not after:
        return "gone"
    if _mixed(after) or (_mixed(before) and _all(after, _BAD)):
        return "flaky"
    if _all(after, _BAD):
        return "still failing" if before and _all(before, _BAD) else "newly failing"
    if not before:
        return "new"
    if _all(after, _GOOD):
        return "newly passing" if _all(before, _BAD) else None
    return "now skipped" if any(test.outcome in _GOOD for test in before) else None


def _mixed(tests: Sequence[TestRecord]) -> bool:
    """Whether a test goes once so, once otherwise; also if a plugin has repeated it until it passed."""
    outcomes = {test.outcome for test in tests}
    repeated = any(test.attempts > 1 and test.outcome in _GOOD for test in tests)
    return repeated or bool(outcomes.intersection(_GOOD) and outcomes.intersection(_BAD))


def _all(tests: Sequence[TestRecord], outcomes: Sequence[str]) -> bool:
    return all(test.outcome in outcomes for test in tests)


def _outcomes(tests: Sequence[TestRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(test.outcome for test in tests))
