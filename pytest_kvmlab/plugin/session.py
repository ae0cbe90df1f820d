"""A pytest session with `--kvm-lab`: its run, and the guests of its tests."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_kvmlab.errors import HostError, KvmlabError, TeardownError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.kernel_log.question import Answer
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.kept import KEPT_SECONDS, hand_over, kept_guests
from pytest_kvmlab.lab.lab import Lab
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.pool import pool_size
from pytest_kvmlab.lab.run import Run, open_run
from pytest_kvmlab.plugin.accounts import ACCOUNTS, account_of, note
from pytest_kvmlab.plugin.asked import asked_guest, asked_lab, named_lab
from pytest_kvmlab.plugin.facts import HostFacts, MakeGuest
from pytest_kvmlab.plugin.live import LiveGuest, Node
from pytest_kvmlab.plugin.place import find_place, tell_worker
from pytest_kvmlab.plugin.progress import ProgressLine
from pytest_kvmlab.report.clean_guests import clean_guests_line
from pytest_kvmlab.report.evidence import Evidence, forget_files, gather, keep_files
from pytest_kvmlab.report.properties import guest_properties
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.kernel import fits
from pytest_kvmlab.spec.known_issues import KnownIssues, load_known_issues
from pytest_kvmlab.spec.options import Options
from pytest_kvmlab.spec.resolved import GuestSpec

EVIDENCE = pytest.StashKey[list[Evidence]]()
FAILED = pytest.StashKey[bool]()
Found = TypeVar("Found")
_NAMES = pytest.StashKey[Counter[str]]()

# What ends a test that nobody wants to know more about: whoever pressed Ctrl-C waits for the end.
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, GeneratorExit, pytest.exit.Exception)


class LabSession:
    """One process's part in a pytest session with `--kvm-lab`.

    Args:
        config: pytest's.
        options: how to run.

    Attributes:
        place: where guests run, or why nowhere.
        known: what is known to be wrong, and is no failure for a time.
        running: the test whose turn it is.
        to_come: how many tests want a clean guest, from the one that runs on.

    Raises:
        ConfigError: the options name a file that cannot be read, or do not go together.
    """

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self.config = config
        self.options = options
        self.worker = getattr(config, "workerinput", {}).get("workerid", "main")
        self._workers = _workers(config)
        self.artifacts = (config.invocation_params.dir / options.artifacts).absolute()
        self.journal = Journal()
        self.progress = ProgressLine(config, self.journal)
        self.live: list[LiveGuest] = []
        self.running: pytest.Item | None = None
        self._own_kernels: dict[str, str] = {}
        self._inventories: dict[tuple[str, GuestSpec], Answer | None] = {}
        self.to_come = 0
        folder, known = config.invocation_params.dir, options.known_issues
        self.known = load_known_issues(folder / known) if known else KnownIssues()
        if options.lab_file is not None:
            named_lab(options.lab_file, config)
        self.place = find_place(config, options)

    @cached_property
    def _opened(self) -> Run | KvmlabError:
        """The run, or why there is none: found out once, told to every test."""
        try:
            return self._open()
        except KvmlabError as error:
            return error
        finally:
            self.progress.clear()

    def _open(self) -> Run:
        place = _or_raise(self.place)
        return open_run(
            replace(self.options, pool=self._pool_size),
            place.choice,
            place.folder,
            worker=self.worker,
            journal=self.journal,
            progress=self.progress.building,
        )

    @property
    def _pool_size(self) -> int:
        if self.options.pool is not None:
            return self.options.pool
        return pool_size(len(os.sched_getaffinity(0)), self._workers)

    @property
    def run(self) -> Run:
        """This process's part in the run, begun on first use.

        Raises:
            KvmlabError: there is no host; the same for every test.
        """
        return _or_raise(self._opened)

    @property
    def keeper(self) -> Keeper | None:
        """The keeper of the run, in the process that owns it."""
        return None if isinstance(self.place, KvmlabError) else self.place.keeper

    # What fixtures give

    @contextmanager
    def guest(self, request: pytest.FixtureRequest, kernel: str) -> Iterator[Guest]:
        """The guest that a test or module asks for, as long as the context lasts."""
        with told_without_traceback(), self._asked(request.node, {}, kernel) as guest:
            yield guest

    @contextmanager
    def lab(self, request: pytest.FixtureRequest, kernel: str) -> Iterator[Lab]:
        """The lab that a test or module asks for, as long as the context lasts."""
        node = request.node
        with told_without_traceback(), ExitStack() as live:
            asked = asked_lab(node, self.options, kernel=self._named(kernel))
            for keys in asked.lab.guests.values():
                self._skip_other_kernels(asked.kernels, keys)
            starting = self._launcher.lab(asked.lab, source=node.nodeid, witness=partial(self._witness, node))
            lab = live.enter_context(starting)
            for guest in lab.values():
                live.enter_context(self._live(guest, node))
            yield lab

    @contextmanager
    def guest_factory(self, request: pytest.FixtureRequest, kernel: str) -> Iterator[MakeGuest]:
        """A function that starts guests which last as long as the context."""
        with told_without_traceback(), ExitStack() as guests:

            def make_guest(**keys: object) -> Guest:
                return guests.enter_context(self._asked(request.node, keys, kernel))

            yield make_guest

    def facts(self) -> HostFacts:
        """Facts about the host."""
        with told_without_traceback():
            run = self.run
            return HostFacts(
                uri=run.host.connection.uri,
                kind=run.host.choice.kind,
                accelerator=run.verdict.accel,
                accelerator_why=run.verdict.why,
                timeout_scale=run.launcher.assembly.timeout_scale,
                libvirt=run.versions.libvirt,
                qemu=run.versions.qemu,
            )

    @contextmanager
    def _asked(self, node: Node, extra: dict[str, object], kernel: str) -> Iterator[Guest]:
        asked = asked_guest(node, self.options, extra, kernel=self._named(kernel))
        self._skip_other_kernels(asked.kernels, asked.keys)
        starting = self._launcher.guest(
            asked.name if asked.lab else _name_within(node, asked.name),
            asked.keys,
            lab=asked.lab,
            source=node.nodeid,
            witness=partial(self._witness, node),
        )
        with starting as guest, self._live(guest, node):
            yield guest

    def _named(self, kernel: str) -> str:
        """What stands in the name of an image with this kernel; one of somebody's own is taken in first."""
        if "/" in kernel and kernel not in self._own_kernels:
            file = self.config.invocation_params.dir / Path(kernel).expanduser()
            self._own_kernels[kernel] = self.run.images.own_kernel(file)
        return self._own_kernels.get(kernel, kernel)

    def _skip_other_kernels(self, wanted: str | None, keys: GuestKeys) -> None:
        """Skip a test that says that it is for other kernels than the one that a guest would boot."""
        if wanted is None or keys.image is None:
            return
        release = self.run.images.kernel_release(keys.image, guests=self.run.launcher)
        if not fits(wanted, release):
            pytest.skip(f"is for kernels {wanted}; that of {keys.image} is {release}")

    @property
    def _launcher(self) -> Launcher:
        """What starts guests, knowing whether more will be wanted."""
        launcher = self.run.launcher
        launcher.to_come = self.to_come
        return launcher

    @contextmanager
    def _live(self, guest: Guest, node: Node) -> Iterator[None]:
        """Know a guest as one that is up for a test."""
        forget_files(self._artifacts_of(guest, node))
        self._take_inventory(guest)
        live = LiveGuest(guest, node)
        self.live.append(live)
        try:
            yield
        finally:
            self.live.remove(live)

    def _witness(self, node: Node, guest: Guest, error: BaseException | None) -> bool:
        """See a guest for the last time; whether it is to be kept after the run."""
        if isinstance(error, INTERRUPTIONS):
            return False
        if error is not None and guest.connected:  # it may not have got ready for what it lacks
            self._take_inventory(guest)
        self.inspect(guest, node, ask=False, used=self._is_used(guest, node, error))
        if isinstance(node, pytest.Item):
            self.tell_junit(node, guest)
        if error is None:
            keep_files(guest, self._artifacts_of(guest, node))
        else:
            node.stash.setdefault(EVIDENCE, []).append(self.look_at(guest, node))
        failed = error is not None or node.stash.get(FAILED, False)
        wanted = self.options.keep == "always" or (self.options.keep == "failed" and failed)
        return wanted and _is_on(guest)

    def _take_inventory(self, guest: Guest) -> None:
        """Ask the first guest of its kind which modules and devices it has, before its test changes that."""
        kind = _kind(guest)
        if kind not in self._inventories:
            self._inventories[kind] = guest.kernel_watch.ask()

    def _is_used(self, guest: Guest, node: Node, error: BaseException | None) -> bool:
        """Whether a guest that ends is one of the running test: others may just have to make way for it."""
        test = self.running
        return test is not None and (
            error is not None or node is test or guest in test.stash.get(ACCOUNTS, {})
        )

    def inspect(self, guest: Guest, node: Node, *, ask: bool, used: bool = True) -> None:
        """Look at the kernel of a guest, and write down for the test that runs what is new.

        Args:
            guest: a guest that was switched on.
            node: the test or module that it lasts for.
            ask: also ask its shell, where that tells what its console does not show.
            used: whether the test that runs uses it; else it is told only what is new.

        Raises:
            ConfigError: the test's mark is wrong.
        """
        inspection = guest.kernel_watch.look(ask=ask)
        if self.running and (inspection.findings or used):
            folder = self._artifacts_of(guest, node).relative_to(self.artifacts)
            account = account_of(self.running, guest, str(folder))
            account.inventory = self._inventories.get(_kind(guest))
            note(self.running, account, inspection, self.known.kernel)

    def look_at(self, guest: Guest, node: Node) -> Evidence:
        """Gather what a guest shows now."""
        return gather(guest, self._artifacts_of(guest, node))

    def _artifacts_of(self, guest: Guest, node: Node) -> Path:
        return self.artifacts / _file_name(node.nodeid) / guest.machine.plan.guest

    def tell_junit(self, item: pytest.Item, guest: Guest) -> None:
        """Give a test the properties of its guest, for JUnit XML; under xdist they travel with the report."""
        replaced = guest.spec.image in self.options.image
        fresh = dict(guest_properties(guest, self.run.verdict.accel, replaced=replaced))
        others = [(name, value) for name, value in item.user_properties if name not in fresh]
        item.user_properties[:] = [*others, *fresh.items()]

    def live_of(self, item: pytest.Item) -> list[LiveGuest]:
        """The guests that are up for a test, shared ones included."""
        return [live for live in self.live if live.serves(item)]

    # pytest's hooks about the run; those about tests are in `reporting`

    def pytest_report_header(self) -> list[str]:
        """Where guests run, with what, and why."""
        if self.config.option.collectonly:
            return []
        if isinstance(self._opened, KvmlabError):
            return [f"kvmlab: no guests can be started: {self._opened.message}"]
        verdict, versions, host = self._opened.verdict, self._opened.versions, self._opened.host
        return [
            f"kvmlab: host {host.choice.kind}: {host.choice.why}",
            f"kvmlab: libvirt {versions.libvirt}, QEMU {versions.qemu}",
            f"kvmlab: accelerator {verdict.accel}: {verdict.why}",
            f"kvmlab: timeouts x {self._opened.launcher.assembly.timeout_scale:g}",
            f"kvmlab: clean guests: {self._clean_guests(host)}",
        ]

    def _clean_guests(self, host: Host) -> str:
        reset, templates = self.options.reset, self.options.templates
        return clean_guests_line(reset, own_host=host.own, templates=templates, pool=self._pool_size)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker which run it belongs to."""
        tell_worker(node, self.place)

    def pytest_unconfigure(self) -> None:
        """End the run; kept guests stay with its keeper."""
        if isinstance(opened := self.__dict__.get("_opened"), Run):
            opened.close()
        if self.keeper:
            self._hand_over(self.keeper)
            self.keeper.close()

    def _hand_over(self, keeper: Keeper) -> None:
        """Leave the kept guests to the keeper; the summary has told already how to reach them."""
        try:
            if kept_guests(keeper.folder):
                hand_over(keeper, KEPT_SECONDS)
        except HostError as error:
            self.config.get_terminal_writer().line(f"kvmlab: guests that were to be kept: {error}", red=True)


@contextmanager
def told_without_traceback() -> Iterator[None]:
    """Let our errors fail a fixture with their message alone: the traceback would be of our own code.

    What is raised has the error as its `__context__`.
    """
    try:
        yield
    except TeardownError:
        raise
    except KvmlabError as error:
        raise pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False) from None


def _workers(config: pytest.Config) -> int:
    """How many processes run the tests: pytest-xdist's workers know it, and the controller was told."""
    told = getattr(config, "workerinput", {}).get("workercount")
    return told or getattr(config.option, "numprocesses", None) or 1


def _or_raise(found: Found | KvmlabError) -> Found:
    if isinstance(found, KvmlabError):
        raise found
    return found


def _kind(guest: Guest) -> tuple[str, GuestSpec]:
    return guest.image_identity, guest.spec


def _name_within(node: Node, name: str) -> str:
    """A guest's name, told apart from those that its test had before: `guest`, `guest-2`."""
    times = node.stash.setdefault(_NAMES, Counter())
    times[name] += 1
    return name if times[name] == 1 else f"{name}-{times[name]}"


def _is_on(guest: Guest) -> bool:
    with suppress(KvmlabError):
        return guest.machine.domain.state() != "off"
    return False


def _file_name(nodeid: str) -> str:
    """A test's id as one folder name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", nodeid).strip("-.")[:150] or "session"
