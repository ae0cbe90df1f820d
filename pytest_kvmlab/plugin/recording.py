"""Writes `run.json`: under pytest-xdist the workers send what their guests showed along with the reports."""

import time
from collections.abc import Collection, Generator, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from pytest_kvmlab.errors import KvmlabError
from pytest_kvmlab.kernel_log.question import Answer
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.host_facts import CpuPressure, host_record
from pytest_kvmlab.lab.whole_file import write_whole
from pytest_kvmlab.plugin.accounts import ACCOUNTS, GuestAccount
from pytest_kvmlab.plugin.outcomes import TestReports
from pytest_kvmlab.plugin.resets import Resets
from pytest_kvmlab.plugin.session import LabSession
from pytest_kvmlab.report.record import guest_record, system_record
from pytest_kvmlab.report.simulated import simulated_bridges
from pytest_kvmlab.spec.run_record import RUN_RECORD, GuestRecord, HostRecord, RunRecord, SystemRecord

_SENT = "kvmlab_record"
"""The name of what a report carries; xdist sends every attribute that is plain data."""


class Recording:
    """Collects what tests and their guests showed, and writes it down at the end of the run.

    Args:
        session: has the guests and the folder of artifacts.
        resets: knows how guests became clean.

    Attributes:
        record: the record, once the run has ended; only where it is written, not in xdist's workers.
    """

    def __init__(self, session: LabSession, resets: Resets) -> None:
        self._session = session
        self._resets = resets
        self._started = time.time()
        self._pressure = CpuPressure()
        self._tests: dict[str, TestReports] = {}
        self._systems: dict[str, SystemRecord] = {}
        self._written_events: WeakKeyDictionary[Guest, int] = WeakKeyDictionary()
        self._told = 0
        self._failure = ""
        self.record: RunRecord | None = None

    @property
    def path(self) -> Path:
        """Where the record is written."""
        return self._session.artifacts / RUN_RECORD

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Let the last report of a test carry what its guests showed."""
        report = yield
        if report.when == "teardown":
            accounts = item.stash.get(ACCOUNTS, {}).values()
            vars(report)[_SENT] = {
                "guests": [guest.model_dump(mode="json") for guest in self._guests(accounts)],
                "systems": dict(_system(each.inventory) for each in accounts if each.inventory),
            }
            item.stash[ACCOUNTS] = {}
        return report

    def _guests(self, accounts: Collection[GuestAccount]) -> Iterator[GuestRecord]:
        """Of a shared guest, each test has the events that are its own.

        Phases of no guest of the test are those of a template that was made meanwhile for one of its guests.
        """
        news = list(self._session.journal.events()[self._told :])
        self._told += len(news)
        own = {id(event) for each in accounts for event in each.guest.machine.journal.events()}
        others = [event for event in news if id(event) not in own]
        for account in accounts:
            guest = account.guest
            events = guest.machine.journal.events()
            fresh = events[self._written_events.get(guest, 0) :]
            self._written_events[guest] = len(events)
            yield guest_record(
                guest,
                answer=account.answer or account.inventory,
                inventory=account.inventory,
                complaints=account.complaints,
                events=fresh,
                template=[event for event in others if event.subject == guest.name],
                folder=account.folder,
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a report, also from a worker."""
        self._tests.setdefault(report.nodeid, TestReports(report.nodeid)).add(report)
        sent = getattr(report, _SENT, None)
        if sent:
            self._tests[report.nodeid].guests = tuple(map(GuestRecord.model_validate, sent["guests"]))
            self._systems |= {key: SystemRecord.model_validate(each) for key, each in sent["systems"].items()}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the record, in the one process that has all of it."""
        if hasattr(session.config, "workerinput") or session.config.option.collectonly:
            return
        if session.exitstatus == pytest.ExitCode.USAGE_ERROR:  # nothing was run
            return
        self.record = self._complete(session)
        try:
            write_whole(self.path, self.record.to_json())
        except OSError as error:
            self._failure = f"{self.path} could not be written: {error.strerror}"

    def _complete(self, session: pytest.Session) -> RunRecord:
        return RunRecord(
            plugin=version("pytest-kvmlab"),
            suite=session.config.rootpath.name,
            started=datetime.fromtimestamp(self._started, UTC),
            seconds=time.time() - self._started,
            exit_status=int(session.exitstatus),
            host=self._host(),
            systems=self._systems,
            resets=dict(self._resets.ways),
            tests=tuple(each.record() for each in self._tests.values()),
        )

    def _host(self) -> HostRecord | None:
        try:
            return host_record(self._session.run, self._pressure)
        except KvmlabError:
            return None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say which networks were not what they seem to be, and if there is no record."""
        for line in simulated_bridges(self.record) if self.record else []:
            terminalreporter.write_line(f"kvmlab: {line}", yellow=True)
        if self._failure:
            terminalreporter.write_line(f"kvmlab: {self._failure}", yellow=True)


def _system(inventory: Answer) -> tuple[str, dict[str, Any]]:
    key, record = system_record(inventory)
    return key, record.model_dump(mode="json")
