"""Where guests run: a private libvirt host, the embedded driver, or a libvirt that is there already."""

import os
import shutil
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from pytest_kvmlab.checks import NEEDED_FOR_EMBED, NEEDED_FOR_PRIVATE_HOST, Check, examine
from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.libvirt import Connection
from pytest_kvmlab.drivers.line_buffer import LineBuffer
from pytest_kvmlab.errors import ConfigError, GuestError, HostError
from pytest_kvmlab.keeper.client import dial
from pytest_kvmlab.keeper.daemon import embedded_files, share_capabilities
from pytest_kvmlab.keeper.run_folder import RunFolder, is_alive, tail_of
from pytest_kvmlab.lab.waits import until

_START_SECONDS = 60.0
_REASON_SECONDS = 2.0
_SYSTEM = "/system"  # the path in a URI of a libvirt that serves the whole machine (libvirt.org/uri.html)


@dataclass(frozen=True)
class HostChoice:
    """Which kind of host a run uses.

    Attributes:
        kind: `private`, `embed`, or a local libvirt URI.
        why: the reason, for the report header.
    """

    kind: str
    why: str

    @property
    def private(self) -> bool:
        """Whether the keeper has to start a libvirt of the run's own."""
        return self.kind == "private"


def choose_host(wish: str, *, keep: bool = False) -> HostChoice:
    """Decide where guests run.

    Args:
        wish: `auto`, `private`, `embed` or a local libvirt URI.
        keep: whether guests may be wanted after the run.

    Returns:
        The choice. `auto` is `private` where the kernel lets this user make namespaces, else `embed`.

    Raises:
        HostError: what was asked for is not possible here, with the check that says why.
        ConfigError: guests of a libvirt that others use, too, were to be kept.
    """
    if wish not in ("auto", "private", "embed"):
        if keep:
            raise ConfigError(
                f"guests of {wish} cannot be kept: that libvirt ends them with the run",
                "use --kvm-host=private, or --kvm-keep=never",
            )
        return HostChoice(wish, "asked for")
    if wish == "embed":
        _require(NEEDED_FOR_EMBED, "the embedded driver cannot be used")
        return HostChoice("embed", "asked for")
    if wish == "private":
        _require(NEEDED_FOR_PRIVATE_HOST, "a private host is not possible")
        return HostChoice("private", "asked for")
    lacking = [finding.seen for _, finding in examine(NEEDED_FOR_PRIVATE_HOST) if not finding.ok]
    if not lacking:
        return HostChoice("private", "namespaces can be made here")
    _require(NEEDED_FOR_EMBED, f"there is neither a private host ({lacking[0]}) nor the embedded driver")
    return HostChoice("embed", f"no private host: {lacking[0]}")


def _require(checks: Iterable[Check], otherwise: str) -> None:
    for check, finding in examine(checks):
        if not finding.ok:
            raise HostError(f"{otherwise}: {finding.seen}", finding.remedy, check=check.name)


@dataclass(frozen=True)
class Host:
    """A libvirt that starts guests for this process.

    Attributes:
        choice: which kind, and why.
        folder: the run's folder, where disks and sockets of guests are.
        connection: libvirt.
        dial: opens a TCP connection as seen from where QEMU runs; takes address, port and seconds, and
            raises OSError if nobody accepts.
        lines: reads the guests' serial lines.
    """

    choice: HostChoice
    folder: RunFolder
    connection: Connection
    dial: Callable[[str, int, float], socket.socket]
    lines: LineBuffer = field(default_factory=LineBuffer)

    @property
    def own(self) -> bool:
        """Whether this libvirt is the run's own, so that everything it keeps goes with the run."""
        return self.choice.kind in ("private", "embed")

    @property
    def autodestroy(self) -> bool:
        """Whether guests can be tied to this connection; the embedded driver cannot."""
        return self.choice.kind != "embed"

    @property
    def qemu_user(self) -> str | None:
        """Whom QEMU has to be told to run as, `+UID:+GID`; None where it runs as this process's user anyway.

        A libvirt for the whole machine gives QEMU a user of its own (libvirt.org/drvqemu.html), who may not
        look into the folder of a run.
        """
        shared = urlsplit(self.choice.kind).path == _SYSTEM
        return f"+{os.geteuid()}:+{os.getegid()}" if shared else None

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
        self.lines.close()


def open_host(choice: HostChoice, folder: RunFolder, *, worker: str, capabilities: Path) -> Host:
    """Connect this process to the host of its run.

    Args:
        choice: the kind of host.
        folder: the run's folder; the keeper of a private host has been started already.
        worker: this process's name within the run; the embedded driver needs a root for each process.
        capabilities: a folder that outlives runs; libvirt remembers there what it found out about QEMU.

    Raises:
        HostError: it does not answer, with the reason that it left.
    """
    if choice.private:
        return Host(choice, folder, _connect_private(folder), _dial_inside(folder))
    if choice.kind == "embed":
        return Host(choice, folder, _connect_embedded(folder, worker, capabilities), _dial_here)
    return Host(choice, folder, _connect_shared(choice.kind), _dial_here)


def _connect_shared(uri: str) -> Connection:
    try:
        return Connection(uri, lost=partial(_shared_host_lost, uri))
    except HostError as error:
        raise HostError(
            error.message,
            f"does that libvirt run, and may you use it? try: virsh --connect '{uri}' list; "
            "or --kvm-host=private, a libvirt of the run's own",
        ) from error


def _connect_private(folder: RunFolder) -> Connection:
    """Wait for the keeper to have started libvirt, and connect."""
    if until(lambda: _answered(folder), Deadline(_START_SECONDS)) is None:
        raise _private_failure(folder, f"no answer within {_START_SECONDS:.0f} s")
    try:
        if uri := folder.read("host.json").get("uri"):
            return Connection(str(uri), lost=partial(_private_host_lost, folder))
    except HostError as error:
        raise _private_failure(folder, error.message) from error
    raise _private_failure(folder, "its keeper ended without a word")


def _answered(folder: RunFolder) -> bool | None:
    """Whether there is news of the private host, good or bad."""
    return folder.host_file.exists() or folder.failure_file.exists() or not is_alive(folder) or None


def _private_failure(folder: RunFolder, otherwise: str) -> HostError:
    free = shutil.disk_usage(folder.path.parent).free
    return HostError(
        f"there is no private libvirt host: {folder.told_failure() or otherwise}",
        "run: kvmlab doctor",
        check="libvirt",
        looked_at=[f"{folder.path} ({free >> 20} MiB free)"],
    )


def _private_host_lost(folder: RunFolder) -> GuestError:
    """What to say of the guests of a private host that ended under them."""
    until(lambda: folder.failure_file.exists() or not is_alive(folder) or None, Deadline(_REASON_SECONDS))
    return GuestError(
        f"the private libvirt host of run {folder.run} ended, and its guests with it: {_why_lost(folder)}",
        "run the tests again; if nobody ended it on purpose, look for the out-of-memory killer: dmesg",
        phase="host",
    )


def _why_lost(folder: RunFolder) -> str:
    """Its own last words, or else what the absence of any tells."""
    if said := folder.told_failure():
        return said
    if not folder.path.exists():
        return "the run was ended from outside, as kvmlab reap and a signal to its keeper do"
    if not is_alive(folder):
        keeper = folder.read("keeper.json").get("pid", "unknown")
        return f"its keeper (process {keeper}) was killed. {tail_of(folder.keeper_log)}".rstrip()
    return "it left no reason"


def _shared_host_lost(uri: str) -> GuestError:
    return GuestError(
        f"the libvirt at {uri} hung up",
        "was it restarted meanwhile? journalctl --unit=libvirtd tells; then run the tests again",
        phase="host",
    )


def _dial_inside(folder: RunFolder) -> Callable[[str, int, float], socket.socket]:
    def dial_inside(address: str, port: int, seconds: float) -> socket.socket:
        try:
            return dial(folder, address, port, timeout=seconds)
        except HostError as error:
            raise _private_host_lost(folder) from error

    return dial_inside


def _dial_here(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


def _connect_embedded(folder: RunFolder, worker: str, capabilities: Path) -> Connection:
    """Open the driver inside this process; its root has to hold the configuration before (drvqemu.html)."""
    root = folder.path / f"embed-{worker}"
    for path, content in embedded_files(root).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    share_capabilities(root / "cache", capabilities)
    return Connection(f"qemu:///embed?root={root}")
