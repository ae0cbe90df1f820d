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
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvmlab.errors import HostError

_RUN_NAME = re.compile(r"[0-9a-f]{8}")


def runs_root() -> Path:
    """The folder under which every run of this user makes its own.

    All runs of a user have to find each other, so `TMPDIR` is not asked; `KVMLAB_RUNS` moves the place.
    Paths below it stay short because a unix socket's path ends at 107 bytes (unix(7)).

    Returns:
        The folder, made if need be, readable by its owner only.

    Raises:
        HostError: it cannot be made, or belongs to somebody else.
    """
    root = Path(os.environ.get("KVMLAB_RUNS") or f"/var/tmp/kvmlab-{os.getuid()}")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise HostError(f"the folder for runs cannot be made: {error}", _RUNS_HINT) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise HostError(f"{root} is not a folder of this user's", _RUNS_HINT)
    return root


_RUNS_HINT = "point KVMLAB_RUNS at a folder that you own, on a disk with room"


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

    def read(self, name: str) -> dict[str, Any]:
        """One JSON document of this folder; empty if it is not there (yet) or half written."""
        try:
            document = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Put one JSON document into this folder, whole or not at all."""
        fresh = self.path / f".{name}.{secrets.token_hex(4)}"
        fresh.write_text(json.dumps(document, indent=1))
        fresh.rename(self.path / name)


def create_run_folder(record: dict[str, Any]) -> tuple[RunFolder, int]:
    """Make the folder of a new run, locked from its first moment.

    Args:
        record: who owns the run and why, kept as `run.json` for `kvmlab ps`.

    Returns:
        The folder, and the open descriptor whose flock is the ownership. It is inheritable by
        whoever shall own the run too; the lock goes when the last holder is gone.

    Raises:
        HostError: the disk is full or the folder cannot be made.
    """
    root = runs_root()
    name = secrets.token_hex(4)
    unborn = root / f".new-{name}"
    try:
        unborn.mkdir(mode=0o700)
        (unborn / "guests").mkdir()
        descriptor = os.open(unborn / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        RunFolder(unborn).write("run.json", record)
        unborn.rename(root / name)
    except OSError as error:
        raise HostError(f"the run's folder {unborn} cannot be made: {error}", _RUNS_HINT) from error
    return RunFolder(root / name), descriptor


def run_folders() -> list[RunFolder]:
    """Every run of this user that has a folder, dead or alive."""
    return [RunFolder(path) for path in sorted(runs_root().iterdir()) if _RUN_NAME.fullmatch(path.name)]


def unborn_folders() -> list[RunFolder]:
    """Folders of runs that died before they had a name."""
    return [RunFolder(path) for path in sorted(runs_root().glob(".new-*"))]


@contextlib.contextmanager
def owning(folder: RunFolder) -> Iterator[bool]:
    """Try to become the owner of a run.

    Args:
        folder: the run's folder.

    Yields:
        True while the lock is held here, so the former owner is dead; False if it lives.
    """
    try:
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield folder.path.exists()
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def is_alive(folder: RunFolder) -> bool:
    """Whether somebody owns this run."""
    with owning(folder) as dead:
        return not dead and folder.path.exists()
