"""From the reports of a test's phases to one outcome."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

import pytest

from pytest_kvmlab.spec.run_record import GuestRecord, Outcome, Phase, TestRecord

_PHASES: tuple[Phase, ...] = get_args(Phase)
_LONGEST_MESSAGE = 4000
_INFRASTRUCTURE = ("kvmlab.failure", "infrastructure")


@dataclass
class TestReports:
    """What was reported of one test.

    Attributes:
        id: the test's id.
        guests: its guests.
        attempts: how often it was run: more than once with a plugin that repeats failed tests.
    """

    __test__ = False  # not one of pytest's own

    id: str
    guests: tuple[GuestRecord, ...] = ()
    attempts: int = 0
    _reports: list[pytest.TestReport] = field(default_factory=list)

    def add(self, report: pytest.TestReport) -> None:
        """Take the report of a phase; a setup begins a new attempt, which is what counts."""
        if report.when == "setup":
            self.attempts += 1
            self._reports.clear()
        self._reports.append(report)

    def record(self) -> TestRecord:
        """All of it, for the record of the run."""
        return TestRecord(
            id=self.id,
            outcome=self._outcome(),
            started=self._reports[0].start,
            seconds={phase: each.duration for phase in _PHASES if (each := self._of(phase))},
            message="\n".join(self._messages())[:_LONGEST_MESSAGE],
            infrastructure=any(_INFRASTRUCTURE in report.user_properties for report in self._reports),
            attempts=self.attempts,
            guests=self.guests,
        )

    def _outcome(self) -> Outcome:
        """A failed call counts more than what went wrong before or after it."""
        call = self._of("call")
        if call and call.failed:
            return "failed"
        if any(report.failed for report in self._reports):
            return "error"
        if expected := next((report for report in self._reports if hasattr(report, "wasxfail")), None):
            return "xfailed" if expected.skipped else "xpassed"
        if any(report.skipped for report in self._reports):
            return "skipped"
        return "passed" if call else "error"

    def _of(self, phase: Phase) -> pytest.TestReport | None:
        return next((report for report in self._reports if report.when == phase), None)

    def _messages(self) -> Iterator[str]:
        if not self._of("teardown"):
            yield "the test did not end"
        for report in self._reports:
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                # Bytes that are no UTF-8 are lone surrogates in Python; JSON has no such thing.
                yield str(crash.message if crash else report.longrepr).encode(errors="replace").decode()
