"""What a test's report says about its guests."""

from collections.abc import Generator

import pytest

from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.plugin.session import EVIDENCE, FAILED, LabSession
from pytest_kvmlab.report.evidence import describe


class LabReporting:
    """Adds to the report of a failed test what its guests showed.

    Args:
        session: knows the guests.
    """

    def __init__(self, session: LabSession) -> None:
        self._session = session

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add sections to a failed report, while the guests are still up."""
        if call.excinfo is not None and _is_infrastructure(call):
            item.user_properties.append(("kvmlab.failure", "infrastructure"))
        report = yield
        if report.failed:
            item.stash[FAILED] = True
            self._add_sections(item, report)
            _mark_infrastructure(call, report)
        return report

    def _add_sections(self, item: pytest.Item, report: pytest.TestReport) -> None:
        evidence = item.stash.get(EVIDENCE, [])
        item.stash[EVIDENCE] = []
        if report.when == "call":
            evidence = [
                *evidence,
                *(self._session.look_at(guest, item) for guest in self._session.guests_of(item)),
            ]
        for each in evidence:
            report.sections.append((f"kvmlab: guest {each.guest}", describe(each)))


def _is_infrastructure(call: pytest.CallInfo[None]) -> bool:
    return call.excinfo is not None and isinstance(call.excinfo.value, GuestError)


def _mark_infrastructure(call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Say that a test failed because its guest broke, not because of what it tests."""
    if call.excinfo is not None and isinstance(error := call.excinfo.value, GuestError):
        text = f"the guest broke in phase '{error.phase}'; this is no verdict on what is tested\n{error}"
        report.sections.append(("kvmlab: infrastructure", text))
