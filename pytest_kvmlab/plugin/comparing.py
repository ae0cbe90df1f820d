"""Compares a run with its baseline when it ends, and lets the verdict be the run's."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from pytest_kvmlab.compare.comparison import Comparison, Side, compare
from pytest_kvmlab.errors import ConfigError, KvmlabError
from pytest_kvmlab.lab.baselines import Baselines, baselines_folder
from pytest_kvmlab.plugin.recording import Recording
from pytest_kvmlab.plugin.session import LabSession
from pytest_kvmlab.report.comparison import notes, rows, verdict


class Comparing:
    """Compares the record of a run with its baseline, where one is named.

    Args:
        session: has the options.
        recording: has the record, once the run has ended.
        failures: what else went wrong, which no baseline excuses.

    Raises:
        ConfigError: the baseline cannot be read, or there is none although something depends on it.
    """

    def __init__(self, session: LabSession, recording: Recording, failures: Sequence[str]) -> None:
        self._options = session.options
        self._known = session.known.test
        self._recording = recording
        self._failures = failures
        self._uncollected = False
        self._found: Comparison | KvmlabError | None = None
        self._before = self._baseline(session.config)

    def _baseline(self, config: pytest.Config) -> Side | None:
        if self._options.baseline:
            folder = config.invocation_params.dir
            return Baselines(baselines_folder()).side(self._options.baseline, folder)
        if self._options.fail_on != "failure":
            raise ConfigError(
                f"--kvm-fail-on={self._options.fail_on} needs a baseline", "name one: --kvm-baseline"
            )
        return None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Know of files that could not be read: their tests are not in the comparison."""
        self._uncollected |= report.failed

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare; a test that failed before fails the run only if failures do."""
        if self._before is None or self._recording.record is None:
            return
        after = Side("this run", (self._recording.record,))
        try:
            self._found = compare(self._before, after, known=self._known, today=datetime.now(UTC).date())
        except KvmlabError as error:
            self._found = error
        if self._options.fail_on != "failure":
            session.exitstatus = self._status(session)

    def _status(self, session: pytest.Session) -> int | pytest.ExitCode:
        """Whatever is no verdict on all tests, such as an interruption or the end by `-x`, stays as it is."""
        verdicts = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if session.exitstatus not in verdicts or session.shouldfail or session.shouldstop:
            return session.exitstatus
        broken = bool(self._failures) or self._uncollected or isinstance(self._found, KvmlabError)
        worse = broken or self._is_worse()
        return pytest.ExitCode.TESTS_FAILED if worse else pytest.ExitCode.OK

    def _is_worse(self) -> bool:
        if not isinstance(self._found, Comparison):
            return False
        slower = self._options.fail_on == "slowdown" and bool(self._found.slowdowns)
        return bool(self._found.regressions) or slower

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what is otherwise than in the baseline."""
        if self._found is None:
            return
        terminalreporter.section(f"kvmlab: compared with {self._options.baseline}")
        told = [str(self._found)] if isinstance(self._found, KvmlabError) else _lines(self._found)
        terminalreporter.write("".join(f"{line}\n" for line in told))


def _lines(comparison: Comparison) -> list[str]:
    differences = [
        f"{change}: {what}{f' -- {note}' if note else ''}" for change, what, note in rows(comparison)
    ]
    return [*notes(comparison), *differences, verdict(comparison)]
