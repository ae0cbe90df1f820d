"""The folder that holds all that a run makes, owned by a lock that dies with its owner.

A folder is born locked (made under a name that no reaper looks at, locked, then renamed), so that there is
no moment in which a living run looks like a dead one.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvmlab.errors import HostError

_RUN_NAME = re.compile(r"[0-9a-f]{8}")
_TAIL_BYTES = 2000
_SHARED = "/var/tmp"  # noqa: S108 - the folder in it is refused if it is anybody else's
# Of a run: until when it is kept. Of a guest: how it is reached, and which locks its image has.
KEPT = "kept.json"
_MEMORY = Path("/dev/shm")  # noqa: S108 - the names in it are random, and the folders their owner's alone
_UNBORN, _GRAVE = ".new-", ".old-"

# The path of a unix socket ends at 107 bytes (unix(7)), and QEMU's monitor is the deepest of ours:
# <run>/conf/libvirt/qemu/lib/domain-<number>-<20 letters of the name>/monitor.sock
_LONGEST_ROOT = 30
# The path stands in URIs, in libvirt's configuration and in QEMU's arguments, each with its own quoting.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/+@-]+")
_RUNS_HINT = "point KVMLAB_RUNS at a folder that you own, on a disk with room, such as /var/tmp/runs"


def runs_root() -> Path:
    """The folder under which every run of this user makes its own.

    All runs of a user have to find each other, so `TMPDIR` is not asked; `KVMLAB_RUNS` moves the place.

    Returns:
        The folder, absolute, made if need be, writable by its owner only.

    Raises:
        HostError: it cannot be made, is not this user's alone, or its path cannot be used.
    """
    root = Path(os.environ.get("KVMLAB_RUNS") or f"{_SHARED}/kvmlab-{os.getuid()}").absolute()
    try:
        obstacle = _unusable_path(root) or make_private(root)
    except OSError as error:
        raise HostError(f"the folder for runs cannot be made: {error}", _RUNS_HINT) from error
    if obstacle:
        raise HostError(f"{root} cannot be the folder for runs: {obstacle}", _RUNS_HINT)
    return root


def _unusable_path(root: Path) -> str:
    """What is wrong with a path before anything is looked at; empty if nothing is."""
    if len(os.fsencode(root)) > _LONGEST_ROOT:
        return f"its path is longer than {_LONGEST_ROOT} bytes, so sockets below it could not be opened"
    if not _PLAIN_PATH.fullmatch(str(root)):
        return "its path has other characters than letters, digits and ._/+@-"
    return ""


def make_private(folder: Path) -> str:
    """Make a folder for its owner alone, and say what is wrong with one that is there; empty if nothing is.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a folder"
    if found.st_uid != os.getuid():
        return f"it belongs to user {found.st_uid}"
    return "others may write to it" if found.st_mode & 0o022 else ""


@dataclass(frozen=True)
class RunFolder:
    """The place of one run.

    Attributes:
        path: the folder; its name is the run's id, eight hexadecimal digits.
    """

    path: Path

    @property
    def run(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def lock(self) -> Path:
        """The file whose flock says that the owner lives."""
        return self.path / "owner.lock"

    @property
    def keeper_socket(self) -> Path:
        """Where the keeper answers, inside the run's network namespace."""
        return self.path / "keeper.sock"

    @property
    def handover_socket(self) -> Path:
        """Where the keeper hears that a guest was left to it."""
        return self.path / "handover.sock"

    @property
    def keeper_log(self) -> Path:
        """What the keeper prints: nothing, unless it breaks."""
        return self.path / "keeper.log"

    @property
    def host_log(self) -> Path:
        """What the private host prints: nothing, unless it breaks."""
        return self.path / "private-host.log"

    @property
    def host_file(self) -> Path:
        """Written once the private host answers: its URI and versions."""
        return self.path / "host.json"

    @property
    def failure_file(self) -> Path:
        """Written if the private host cannot be started: why."""
        return self.path / "failed.txt"

    @property
    def guests(self) -> Path:
        """One folder per guest: overlay, sockets, console."""
        return self.path / "guests"

    @property
    def memory(self) -> Path:
        """A folder in memory, for the memory of frozen guests; gone with the run, like its folder on disk."""
        return _MEMORY / f"kvl-{self.run}"

    def lan(self, name: str) -> Path:
        """The folder of the networks of one use of a lab: socket, leases, logs."""
        return self.path / f"lan-{name}"

    def lan_socket(self, name: str) -> Path:
        """Where the process of those networks answers."""
        return self.lan(name) / "sock"

    def tell_failure(self, why: str) -> None:
        """Say why there is no private host; what was said first is closest to the cause, and stays."""
        if not self.failure_file.exists():
            self._put(self.failure_file, why)

    def told_failure(self) -> str:
        """All that `tell_failure` wrote, from its beginning, which names the cause; empty if all is well."""
        try:
            return self.failure_file.read_text(errors="replace")
        except OSError:
            return ""

    def read(self, name: str) -> dict[str, Any]:
        """One JSON document of this folder; empty if it is not there (yet) or half written."""
        try:
            document = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Put one JSON document into this folder, whole or not at all."""
        self._put(self.path / name, json.dumps(document, indent=1))

    def _put(self, path: Path, text: str) -> None:
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        fresh.write_text(text)
        fresh.rename(path)


def create_run_folder(record: dict[str, Any]) -> tuple[RunFolder, int]:
    """Make the folder of a new run, locked from its first moment.

    Args:
        record: who owns the run and why, kept as `run.json` for `kvmlab ps`.

    Returns:
        The folder, and the open descriptor whose flock is the ownership. It goes to whoever shall own the
        run; the lock ends with its last holder (flock(2)).

    Raises:
        HostError: the disk is full or the folder cannot be made.
    """
    root = runs_root()
    name = secrets.token_hex(4)
    unborn = root / f"{_UNBORN}{name}"
    try:
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, unborn, ignore_errors=True)
            unborn.mkdir(mode=0o700)
            lock = _open_lock(RunFolder(unborn))
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            RunFolder(unborn).guests.mkdir()
            RunFolder(unborn).write("run.json", record)
            unborn.rename(root / name)
            undo.pop_all()
    except OSError as error:
        raise HostError(f"the run's folder {unborn} cannot be made: {error}", _RUNS_HINT) from error
    return RunFolder(root / name), lock


def run_folders() -> list[RunFolder]:
    """Every run of this user that has a folder, dead or alive; a link is none, since it may lead anywhere."""
    return [RunFolder(path) for path in _folders("*") if _RUN_NAME.fullmatch(path.name)]


def unborn_folders() -> list[RunFolder]:
    """Folders of runs that have no name yet, and never will if their maker is dead."""
    return [RunFolder(path) for path in _folders(f"{_UNBORN}*")]


def graves() -> list[Path]:
    """Folders that somebody began to remove."""
    return _folders(f"{_GRAVE}*")


def grave_of(folder: RunFolder) -> Path:
    """Where a dead run's folder goes before its files do, so that no moment shows a run half removed."""
    return folder.path.with_name(f"{_GRAVE}{folder.run.removeprefix(_UNBORN)}")


def _folders(pattern: str) -> list[Path]:
    return [path for path in sorted(runs_root().glob(pattern)) if path.is_dir() and not path.is_symlink()]


@contextlib.contextmanager
def owning(folder: RunFolder) -> Iterator[bool]:
    """Try to become the owner of a run.

    Args:
        folder: the run's folder.

    Yields:
        True while the lock is held here, so the former owner is dead; False if it lives, if the folder is
        gone, or if it cannot be looked at: what is in doubt is left alone.
    """
    try:
        lock = _open_lock(folder)
    except OSError:
        yield False
        return
    try:
        yield _lock(lock) and _is_still(lock, folder.lock)
    finally:
        os.close(lock)


def is_alive(folder: RunFolder) -> bool:
    """Whether somebody owns this run."""
    with owning(folder) as dead:
        return not dead and folder.path.exists()


def _open_lock(folder: RunFolder) -> int:
    """Open the lock, made if need be: without one, two could believe that a folder is theirs."""
    return os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether a file is still the one that was opened: its folder may have been swept in between."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def tail_of(log: Path) -> str:
    """The last whole lines of a log, as many as fit into a message; empty if there is none."""
    try:
        with log.open("rb") as text:
            before = max(0, log.stat().st_size - _TAIL_BYTES)
            text.seek(before)
            tail = text.read(_TAIL_BYTES)
    except OSError:
        return ""
    _, cut, whole = tail.partition(b"\n")
    return (whole if before and cut else tail).decode(errors="replace").strip()
