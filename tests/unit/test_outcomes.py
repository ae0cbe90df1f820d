"""From reports of phases to one outcome; those of a worker that crashed included."""

from typing import Any

import pytest

from pytest_kvmlab.plugin.outcomes import TestReports
from pytest_kvmlab.spec.run_record import TestRecord

WHOLE = [("setup", "passed"), ("call", "passed"), ("teardown", "passed")]


def report(when: str, outcome: str, **extra: Any) -> pytest.TestReport:
    made: Any = pytest.TestReport
    failed = extra.pop("longrepr", "what failed" if outcome == "failed" else None)
    found: pytest.TestReport = made("test_it", ("", 0, ""), {}, outcome, failed, when, duration=0.5, **extra)
    return found


def recorded(*reports: pytest.TestReport) -> TestRecord:
    reports_of_test = TestReports("test_it")
    for each in reports:
        reports_of_test.add(each)
    return reports_of_test.record()


@pytest.mark.parametrize(
    ("phases", "outcome"),
    [
        (WHOLE, "passed"),
        ([("setup", "passed"), ("call", "failed"), ("teardown", "failed")], "failed"),
        ([("setup", "failed"), ("teardown", "passed")], "error"),
        ([("setup", "passed"), ("call", "passed"), ("teardown", "failed")], "error"),
        ([("setup", "skipped"), ("teardown", "passed")], "skipped"),
        ([("setup", "passed")], "error"),
        (
            [("setup", "passed"), ("???", "failed")],
            "error",
        ),  # what pytest-xdist says of a worker that crashed
    ],
)
def test_the_outcome_of_a_test(phases: list[tuple[str, str]], outcome: str) -> None:
    assert recorded(*(report(when, each) for when, each in phases)).outcome == outcome


@pytest.mark.parametrize(("outcome", "told"), [("skipped", "xfailed"), ("passed", "xpassed")])
def test_an_expected_failure(outcome: str, told: str) -> None:
    found = recorded(
        report("setup", "passed"), report("call", outcome, wasxfail="known"), report("teardown", "passed")
    )
    assert found.outcome == told


def test_a_test_that_did_not_end_says_so() -> None:
    assert recorded(report("setup", "passed")).message == "the test did not end"
    assert recorded(*(report(*each) for each in WHOLE)).message == ""


def test_of_a_test_that_is_repeated_the_last_attempt_counts() -> None:
    first = [report("setup", "passed"), report("call", "failed"), report("teardown", "passed")]
    found = recorded(*first, *(report(*each) for each in WHOLE))
    assert (found.outcome, found.attempts, found.message) == ("passed", 2, "")


def test_a_message_is_bounded_and_fit_for_json() -> None:
    found = recorded(report("call", "failed", longrepr="\udcff" + "x" * 9999))
    assert len(found.message) == 4000
    assert "\udcff" not in found.model_dump_json()
