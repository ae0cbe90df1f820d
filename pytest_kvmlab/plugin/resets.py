"""How tests get clean guests: what is known of the tests to come, and what is told at the end."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from pytest_kvmlab.journal import Event
from pytest_kvmlab.lab.background import told
from pytest_kvmlab.lab.run import Run
from pytest_kvmlab.plugin.session import LabSession
from pytest_kvmlab.plugin.skipping import our_fixtures

_OF_ONE_TEST = {"kvm_guest", "kvm_lab", "make_guest"}
_SENT = "kvmlab_resets"


class Resets:
    """Lets guests be started ahead of time, and reports how they became clean and how they ended.

    Args:
        session: has the launcher.

    Attributes:
        failures: what went wrong behind the tests' backs, known when the session has finished.
        ways: how often guests became clean in which way, in words, once the session has finished.
    """

    def __init__(self, session: LabSession) -> None:
        self._session = session
        self.failures: list[str] = []
        self.ways: Counter[str] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the tests that want a clean guest."""
        self._session.to_come = sum(map(_wants_guest, session.items))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, nextitem: pytest.Item | None) -> None:
        """Know the last test, for which nothing has to be prepared any more."""
        if nextitem is None:
            self._session.to_come = min(self._session.to_come, 1)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Count down."""
        self._session.to_come -= _wants_guest(item)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Wait until every guest has ended; one that did not fails the run, not just any test."""
        if isinstance(opened := self._session.__dict__.get("_opened"), Run):
            self.failures += map(told, opened.launcher.finish())
            self.ways.update(_ways(self._session.journal.events()))
        if output := getattr(session.config, "workeroutput", None):
            output[_SENT] = [self.failures, dict(self.ways)]
        if self.failures and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Hear from an xdist worker how its guests ended."""
        failures, ways = getattr(node, "workeroutput", {}).get(_SENT, ([], {}))
        self.failures += failures
        self.ways.update(ways)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tell what went wrong behind the tests' backs, and how guests became clean, and why not quicker."""
        if self.failures:
            terminalreporter.section("kvmlab: guests that did not end", red=True)
            terminalreporter.write("".join(f"{line}\n" for line in self.failures))
        if self.ways:
            terminalreporter.section("kvmlab: clean guests")
            terminalreporter.write("".join(f"{times} x {way}\n" for way, times in self.ways.most_common()))


def _wants_guest(item: pytest.Item) -> bool:
    return bool(our_fixtures(item) & _OF_ONE_TEST)


def _ways(events: Iterable[Event]) -> Iterator[str]:
    """How each clean guest came about, in words."""
    for event in events:
        if event.kind == "reset":
            yield f"{event.name}: {event.outcome}" if event.outcome else event.name
