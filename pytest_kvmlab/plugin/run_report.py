"""Writes a page about the run, where one is wanted."""

from pathlib import Path
from typing import Any

import pytest

from pytest_kvmlab.lab.whole_file import write_whole
from pytest_kvmlab.plugin.recording import Recording
from pytest_kvmlab.plugin.session import LabSession


class RunReport:
    """Writes the page of `--kvm-report` when the run has ended.

    Args:
        session: has the options.
        recording: has the record, once the run has ended.

    Raises:
        ConfigError: the libraries for pages are not installed.
    """

    def __init__(self, session: LabSession, recording: Recording) -> None:
        self._session = session
        self._recording = recording
        self._told = ""
        if session.options.report:
            # What is missing is told before the tests run, and not after.
            from pytest_kvmlab.report import run_page  # noqa: F401, PLC0415

    @property
    def _path(self) -> Path | None:
        path = self._session.options.report
        return self._session.config.invocation_params.dir / path if path else None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the page, in the process that has the record."""
        path, record = self._path, self._recording.record
        if path is None or record is None:
            return
        from pytest_kvmlab.report.run_page import run_page  # noqa: PLC0415  its libraries are an extra

        try:
            write_whole(path, run_page(record, self._session.artifacts))
            self._told = f"page about this run: {path}"
        except OSError as error:
            self._told = f"{path} could not be written: {error.strerror}"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say where it is."""
        if self._told:
            terminalreporter.write_line(f"kvmlab: {self._told}")
