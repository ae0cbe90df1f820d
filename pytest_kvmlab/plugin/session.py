"""A pytest session with `--kvm-lab`: its run, and the guests of its tests."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from pytest_kvmlab.errors import KvmlabError, TeardownError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.keeper.reap import reap_dead_runs
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import HostChoice, choose_host
from pytest_kvmlab.lab.kept import KEPT_SECONDS, kept_guests
from pytest_kvmlab.lab.run import Run, capabilities_folder, open_run
from pytest_kvmlab.plugin.asked import asked_guest
from pytest_kvmlab.plugin.facts import HostFacts, MakeGuest
from pytest_kvmlab.plugin.progress import ProgressLine
from pytest_kvmlab.report.evidence import Evidence, gather, keep_files
from pytest_kvmlab.spec.options import Options

_WORKER_INPUT = "kvmlab"
EVIDENCE = pytest.StashKey[list[Evidence]]()
FAILED = pytest.StashKey[bool]()

Node = pytest.Item | pytest.Collector


class LabSession:
    """One process's part in a pytest session with `--kvm-lab`.

    Args:
        config: pytest's.
        options: how to run.
        choice: where guests run.
        folder: the run's folder.
        keeper: the run's keeper, in the one process that owns the run: not in xdist's workers.
    """

    def __init__(
        self,
        config: pytest.Config,
        options: Options,
        choice: HostChoice,
        folder: RunFolder,
        keeper: Keeper | None,
    ) -> None:
        self.config = config
        self.options = options
        self.choice = choice
        self.folder = folder
        self.keeper = keeper
        self.worker = getattr(config, "workerinput", {}).get("workerid", "main")
        self.artifacts = (config.invocation_params.dir / options.artifacts).absolute()
        self.journal = Journal()
        self.progress = ProgressLine(config, self.journal)
        self.live: list[tuple[Guest, Node]] = []

    @classmethod
    def begin(cls, config: pytest.Config, options: Options) -> "LabSession":
        """Begin the session: own a new run, or, in a worker, take part in its controller's.

        Raises:
            pytest.UsageError: the host that was asked for is not possible here.
        """
        told = getattr(config, "workerinput", {}).get(_WORKER_INPUT)
        if told:
            choice = HostChoice(told["kind"], told["why"])
            return cls(config, options, choice, RunFolder(Path(told["folder"])), None)
        try:
            reap_dead_runs()
            choice = choose_host(options.host)
            capabilities = capabilities_folder(options) if choice.private else None
            keeper = Keeper(_record(config, choice), capabilities=capabilities)
        except KvmlabError as error:
            raise pytest.UsageError(str(error)) from None
        return cls(config, options, choice, keeper.folder, keeper)

    @cached_property
    def _opened(self) -> Run | KvmlabError:
        """The run, or why there is none: found out once, told to every test."""
        try:
            return open_run(
                self.options,
                self.choice,
                self.folder,
                worker=self.worker,
                journal=self.journal,
                progress=self.progress.building,
            )
        except KvmlabError as error:
            return error

    @property
    def run(self) -> Run:
        """This process's part in the run, begun on first use.

        Raises:
            KvmlabError: there is no host; the same for every test.
        """
        if isinstance(self._opened, KvmlabError):
            raise self._opened
        return self._opened

    # What fixtures give

    @contextmanager
    def guest(self, request: pytest.FixtureRequest) -> Iterator[Guest]:
        """The guest that a test or module asks for, as long as the context lasts."""
        with told_without_traceback(), self._asked(request.node, {}) as guest:
            yield guest

    @contextmanager
    def guest_factory(self, request: pytest.FixtureRequest) -> Iterator[MakeGuest]:
        """A function that starts guests which last as long as the context."""
        with told_without_traceback(), ExitStack() as guests:

            def make_guest(**keys: object) -> Guest:
                return guests.enter_context(self._asked(request.node, keys))

            yield make_guest

    def facts(self) -> HostFacts:
        """Facts about the host."""
        with told_without_traceback():
            run = self.run
            return HostFacts(
                uri=run.host.connection.uri,
                kind=self.choice.kind,
                accelerator=run.verdict.accel,
                accelerator_why=run.verdict.why,
                timeout_scale=run.launcher.timeout_scale,
                libvirt=run.versions.libvirt,
                qemu=run.versions.qemu,
            )

    @contextmanager
    def _asked(self, node: Node, extra: dict[str, object]) -> Iterator[Guest]:
        name, keys = asked_guest(node, self.options, extra)

        def witness(guest: Guest, error: BaseException | None) -> bool:
            return self._witness(guest, node, error)

        with self.run.launcher.guest(name, keys, source=node.nodeid, witness=witness) as guest:
            self.live.append((guest, node))
            _tell_junit(node, guest, self.run)
            try:
                yield guest
            finally:
                self.live.remove((guest, node))

    def _witness(self, guest: Guest, node: Node, error: BaseException | None) -> bool:
        """See a guest for the last time; whether it is to be kept after the run."""
        failed = error is not None or node.stash.get(FAILED, False)
        if error is not None:
            node.stash.setdefault(EVIDENCE, []).append(self.look_at(guest, node))
        else:
            keep_files(guest, self._artifacts_of(guest, node))
        return self.options.keep == "always" or (self.options.keep == "failed" and failed)

    def look_at(self, guest: Guest, node: Node) -> Evidence:
        """Gather what a guest shows now."""
        return gather(guest, self._artifacts_of(guest, node))

    def _artifacts_of(self, guest: Guest, node: Node) -> Path:
        return self.artifacts / _file_name(node.nodeid) / guest.machine.plan.guest

    def guests_of(self, item: pytest.Item) -> list[Guest]:
        """The guests that are up for a test, shared ones included."""
        return [guest for guest, node in self.live if node in item.listchain()]

    # pytest's hooks about the run; those about reports are in `reporting`

    def pytest_report_header(self) -> list[str]:
        """Where guests run, with what, and why."""
        if self.keeper is None or self.config.option.collectonly:
            return []
        if isinstance(self._opened, KvmlabError):
            return [f"kvmlab: no guests can be started: {self._opened.message}"]
        verdict, versions = self._opened.verdict, self._opened.versions
        return [
            f"kvmlab: host {self.choice.kind}: {self.choice.why}",
            f"kvmlab: libvirt {versions.libvirt}, QEMU {versions.qemu}",
            f"kvmlab: accelerator {verdict.accel}: {verdict.why}",
            f"kvmlab: timeouts x {self._opened.launcher.timeout_scale:g}",
        ]

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker which run it belongs to."""
        facts = {"folder": str(self.folder.path), "kind": self.choice.kind, "why": self.choice.why}
        node.workerinput[_WORKER_INPUT] = facts

    def pytest_unconfigure(self) -> None:
        """End the run; kept guests stay with its keeper."""
        if "_opened" in self.__dict__ and isinstance(self._opened, Run):
            self._opened.close()
        if self.keeper is not None:
            if kept_guests(self.folder):
                self.keeper.keep(KEPT_SECONDS)
            self.keeper.close()


@contextmanager
def told_without_traceback() -> Iterator[None]:
    """Let our errors fail a fixture with their message alone: the traceback would be of our own code."""
    try:
        yield
    except TeardownError:
        raise
    except KvmlabError as error:
        raise pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False) from None


def _tell_junit(node: Node, guest: Guest, run: Run) -> None:
    """Properties of the test in JUnit XML; under xdist they travel with the report."""
    if isinstance(node, pytest.Item):
        node.user_properties += [
            (f"kvmlab.{guest.name}.image", guest.spec.image),
            (f"kvmlab.{guest.name}.image_sha256", guest.image_identity),
            ("kvmlab.accelerator", run.verdict.accel),
            *(
                (f"kvmlab.{guest.name}.{name}_seconds", f"{seconds:.3f}")
                for name, seconds in guest.timings().items()
            ),
        ]


def _record(config: pytest.Config, choice: HostChoice) -> dict[str, Any]:
    """Who owns a run, for `kvmlab ps`."""
    return {
        "owner": os.getpid(),
        "started": time.time(),
        "command": ["pytest", *map(str, config.invocation_params.args)],
        "folder": str(config.invocation_params.dir),
        "host": choice.kind,
        "python": sys.executable,
    }


def _file_name(nodeid: str) -> str:
    """A test's id as one folder name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", nodeid).strip("-.")[:150] or "session"
