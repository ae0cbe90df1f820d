"""Templates that outlive their run: copied into the store, and back into a run that wants them.

A run works on copies, so no guest ever writes to the store, and copying finds out whether what was kept is
still what it was. The key that lets us into such guests is kept with them, for its owner alone: whoever can
read it can read their memory beside it as well, and to replace it would cost each clone a command.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.frozen import BLANKS, Frozen
from pytest_kvmlab.lab.place import Place

_INVENTORY, _MEMORY = "inventory.json", "memory"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_HALF = ".new-"
_PIECE = 2**20
_NOTHING = bytes(_PIECE)


@dataclass(frozen=True)
class Kept:
    """A template in the store.

    Attributes:
        folder: where it is.
        stands_on: the disks of images that its own stand on; None if it is damaged.
        used: when a run last took a copy of it, or it was made: seconds since 1970.
    """

    folder: Path
    stands_on: tuple[Path, ...] | None
    used: float


@dataclass(frozen=True)
class Shelf:
    """Templates in the store.

    Attributes:
        folder: where they are.
        most: how many stay; of more, the one that was not used for the longest time goes.
    """

    folder: Path
    most: int = 8

    def lend(self, key: str, place: Place) -> Sequence[Frozen] | None:
        """Copy a template into a run.

        Args:
            key: names all that it depends on.
            place: where to, empty.

        Returns:
            What clones start from; None if there is no such template, or what there is was damaged: that is
            removed then.
        """
        source = self.folder / key
        with self._locked(fcntl.LOCK_SH):
            if not (source / _INVENTORY).exists():
                return None
            try:
                guests = _lent(source, place)
                os.utime(source)
            except (OSError, ValueError, KeyError, TypeError, ImageError) as error:
                if isinstance(error, OSError) and error.errno in _NO_ROOM:
                    return None  # where it was to go: what is kept is as good as before
                guests = None
        if guests is None:
            self.discard(key)
        return guests

    def discard(self, key: str) -> None:
        """Remove a template of which no more clones are to be made.

        Args:
            key: names it; there need not be one.
        """
        with suppress(OSError):
            self.remove(self.folder / key)

    def keep(self, key: str, guests: Sequence[Frozen]) -> None:
        """Copy a template of a run into the store; without room for it, there is just none.

        Args:
            key: names all that it depends on.
            guests: what clones start from.
        """
        with suppress(OSError), self._locked(fcntl.LOCK_EX):
            fresh = Path(tempfile.mkdtemp(prefix=_HALF, dir=self.folder))
            try:
                _write_inventory(fresh, [_kept(guest, fresh / str(at)) for at, guest in enumerate(guests)])
                fresh.rename(self.folder / key)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            self._make_room()

    def kept(self) -> list[Kept]:
        """All templates, first the one that was not used for the longest time."""
        kept = [Kept(path, _stands_on(path), path.stat().st_mtime) for path in self._folders()]
        return sorted(kept, key=lambda each: each.used)

    def halves(self) -> list[Path]:
        """What was written when its writer died, once nobody writes any more; nothing of other users."""
        with suppress(OSError):
            if list(self.folder.glob(f"{_HALF}*")):
                with self._locked(fcntl.LOCK_SH):
                    return sorted(self.folder.glob(f"{_HALF}*"))
        return []

    def remove(self, folder: Path) -> None:
        """Remove a template, or half of one.

        Args:
            folder: where it is.

        Raises:
            OSError: it cannot be removed.
        """
        with self._locked(fcntl.LOCK_EX), suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def _folders(self) -> list[Path]:
        """The folders of all templates; those of another user are not seen."""
        with suppress(OSError):
            return [path for path in self.folder.iterdir() if path.is_dir() and path.name[0] != "."]
        return []

    def _make_room(self) -> None:
        folders = sorted(self._folders(), key=lambda path: path.stat().st_mtime)
        for path in folders[: -self.most]:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, how)
            yield


def _write_inventory(folder: Path, guests: Sequence[dict[str, object]]) -> None:
    (folder / _INVENTORY).write_text(json.dumps(guests, indent=1))


def _kept(guest: Frozen, folder: Path) -> dict[str, object]:
    """Copy one guest of a template; what was copied, with the hash of each file."""
    folder.mkdir(mode=0o700)
    files = [path for path in sorted(guest.folder.iterdir()) if path.is_file()]
    hashes = {path.name: copy(path, folder / path.name) for path in files}
    return {
        "guest": guest.as_document(),
        "files": hashes | {_MEMORY: copy(guest.memory, folder / _MEMORY)},
    }


def _stands_on(folder: Path) -> tuple[Path, ...] | None:
    """The files that the disks of a template name in their headers; of a damaged one, nobody knows."""
    try:
        names = [
            folder / str(number) / Path(disk).name
            for number, kept in enumerate(json.loads((folder / _INVENTORY).read_text()))
            for disk in kept["guest"]["disks"]
        ]
        backing = [qemu_img.info(disk, "qcow2").backing for disk in names]
    except (OSError, ValueError, KeyError, TypeError, ImageError):
        return None
    return tuple(Path(base) for base in backing if base)


def _lent(source: Path, place: Place) -> list[Frozen]:
    guests = []
    for number, kept in enumerate(json.loads((source / _INVENTORY).read_text())):
        folder, memory = place.of_guest(number), place.memory_of(number)
        for name, sha256 in kept["files"].items():
            target = memory if name == _MEMORY else folder / Path(name).name
            if copy(source / str(number) / Path(name).name, target) != sha256:
                raise ImageError(f"a kept template is damaged: {name}")
        guest = Frozen.of(kept["guest"])
        disks = tuple(folder / disk.name for disk in guest.disks)
        for at, disk in enumerate(disks):
            # A new overlay each: the path of what it stands on is written in it.
            (folder / BLANKS.format(at)).unlink()
            qemu_img.create_overlay(disk, "qcow2", folder / BLANKS.format(at))
        guests.append(replace(guest, folder=folder, memory=memory, disks=disks))
    return guests


def copy(source: Path, target: Path) -> str:
    """Copy a file that is mostly holes.

    Args:
        source: the file.
        target: the new one, with the same mode; what is zero in the one is a hole in the other.

    Returns:
        A SHA-256 of what is not zero, and where.
    """
    digest = hashlib.sha256()
    with source.open("rb") as old, target.open("wb") as new:
        os.fchmod(new.fileno(), source.stat().st_mode & 0o777)
        size = os.fstat(old.fileno()).st_size
        os.ftruncate(new.fileno(), size)
        for at in range(0, size, _PIECE):
            piece = old.read(_PIECE)
            if piece != _NOTHING[: len(piece)]:
                digest.update(at.to_bytes(8, "big"))
                digest.update(piece)
                os.pwrite(new.fileno(), piece, at)
    digest.update(size.to_bytes(8, "big"))
    return digest.hexdigest()
