"""What tests tell about their guests: sections, properties, and the guests that stay."""

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from pytest_kvmlab.errors import CommandFailed, GuestError, KvmlabError, SerialMismatch, WaitTimeout
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.plugin import kernel_checks
from pytest_kvmlab.plugin.html_extras import add_pictures
from pytest_kvmlab.plugin.session import EVIDENCE, FAILED, LabSession, told_without_traceback
from pytest_kvmlab.report.evidence import Evidence, describe
from pytest_kvmlab.report.kept import kept_lines

_OURS = (KvmlabError, CommandFailed, WaitTimeout, SerialMismatch)
_PACKAGE = Path(__file__).absolute().parents[1]


class LabReporting:
    """Adds to the report of a test what its guests showed.

    Args:
        session: knows the guests.
    """

    def __init__(self, session: LabSession) -> None:
        self._session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Let no test wait for a shared guest that broke in an earlier one."""
        with told_without_traceback():
            for live in self._session.live_of(item):
                live.require_sound()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add properties to every report and sections to a failed one, while the guests are still up."""
        self._session.progress.clear()
        infrastructure = _infrastructure(call)
        if infrastructure:
            item.user_properties.append(("kvmlab.failure", "infrastructure"))
        for live in self._session.live_of(item):
            self._session.tell_junit(item, live.guest)
        reasons = self._reasons(item, call)
        if call.excinfo and isinstance(call.excinfo.value, _OURS) and not item.config.option.fulltrace:
            _end_at_the_test(call.excinfo.value)
        report = yield
        if report.failed:
            self._note_failure(item, reasons)
            seen = list(self._see(item))
            report.sections += [(f"kvmlab: guest {each.guest}", describe(each)) for each in seen]
            if item.config.pluginmanager.hasplugin("html"):
                add_pictures(report, seen)
            if infrastructure:
                report.sections.append(("kvmlab: infrastructure", _no_verdict(infrastructure)))
        return report

    def _reasons(self, item: pytest.Item, call: pytest.CallInfo[None]) -> dict[Guest, GuestError]:
        """Which guests a test's end came out of; a traceback that was cut short no longer tells it."""
        error = call.excinfo.value if call.excinfo else None
        if not isinstance(error, GuestError):
            return {}
        guests = [live.guest for live in self._session.live_of(item)]
        return {guest: error for guest in guests if guest.raised(error)}

    def _note_failure(self, item: pytest.Item, reasons: Mapping[Guest, GuestError]) -> None:
        for live in self._session.live_of(item):
            live.node.stash[FAILED] = True
            live.note_failure(item, reasons.get(live.guest))

    def _see(self, item: pytest.Item) -> Iterator[Evidence]:
        """What guests show that are up, and what those showed that did not come so far."""
        for node in item.listchain():
            yield from node.stash.get(EVIDENCE, [])
            node.stash[EVIDENCE] = []
        for live in self._session.live_of(item):
            if live.broken_in in ("", item.nodeid):  # a later test has nothing to add
                yield self._session.look_at(live.guest, live.node)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say how to reach and remove the guests that stay."""
        keeper = self._session.keeper
        lines = kept_lines(keeper.folder) if keeper else []
        if lines:
            terminalreporter.section("kvmlab: kept guests")
            terminalreporter.write("".join(f"{line}\n" for line in lines))


def _infrastructure(call: pytest.CallInfo[None]) -> GuestError | None:
    """The guest's own failure, if it is what ended the test; a fixture tells it without traceback."""
    error = call.excinfo.value if call.excinfo else None
    told = error.__context__ if isinstance(error, pytest.fail.Exception) else error
    return told if isinstance(told, GuestError) else None


def _no_verdict(error: GuestError) -> str:
    return f"the guest broke in phase '{error.phase}': this is no verdict on what is tested"


def _end_at_the_test(error: BaseException) -> None:
    """Let the traceback of our errors end where the test called us: their message says what is inside."""
    frame = error.__traceback__
    while frame and frame.tb_next and not _is_inside(frame.tb_next):
        frame = frame.tb_next
    if frame and frame.tb_next and not _is_inside(frame):
        frame.tb_next, error.__cause__, error.__suppress_context__ = None, None, True


def _is_inside(frame: TracebackType) -> bool:
    """Whether a frame is of this package's own code; the shipped labs are tests like any other.

    A hook of ours is around the test, not inside it.
    """
    path = Path(frame.tb_frame.f_code.co_filename)
    outside = path.is_relative_to(_PACKAGE / "fixtures") or path == Path(kernel_checks.__file__)
    return path.is_relative_to(_PACKAGE) and not outside
