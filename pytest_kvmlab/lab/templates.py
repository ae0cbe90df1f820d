"""The templates of a run: frozen guests, each made once, by whichever process of the run needs it first."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.errors import HostError, ImageError
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.frozen import Frozen, read_record, write_record
from pytest_kvmlab.lab.place import Place
from pytest_kvmlab.lab.template_shelf import Shelf

_RECORD, _REFUSED = "template.json", "refused.txt"
# Of a file system in memory, so that a guest's memory does not crowd out what others have there.
_ROOM_LEFT = 256 * 2**20

Guests = Sequence[Frozen]
Make = Callable[[Place], Guests]
Check = Callable[[Guests], None]


class NoClones(HostError):
    """Guests of this kind cannot be cloned here, for the reason that the message gives."""


@dataclass
class Templates:
    """What clones are started from.

    Attributes:
        run: the folder of the run; templates go with it.
        shelf: keeps them for other runs; None: they are not kept.
    """

    run: RunFolder
    shelf: Shelf | None = None

    def has(self, key: str) -> bool:
        """Whether a template is there already, made by any process of the run."""
        return (self._folder(key) / _RECORD).exists()

    def get(self, key: str, memory: int, make: Make, check: Check) -> Guests:
        """A template, made now if no process of the run has made it yet; if one is at it, it is waited for.

        One that was damaged since it was made is made anew.

        Args:
            key: names all that it depends on.
            memory: bytes that its guests have together.
            make: makes it, at a place that is empty.
            check: raises NoClones if one that an earlier run has kept is no good any more.

        Raises:
            NoClones: it cannot be made, or its clones were found to be no good.
            KvmlabError: its guests do not get ready, which is nothing that speaks against clones.
        """
        try:
            found = self._found(key) or self._made_by_one(key, memory, make, check)
        except OSError as error:
            raise NoClones(f"a template cannot be written down: {error}") from error
        if isinstance(found, str):
            raise NoClones(found)
        return found

    def refuse(self, key: str, why: str) -> None:
        """Remember for all processes of the run that nothing can be started from a template, and keep it not.

        Args:
            key: names it.
            why: the reason.
        """
        if self.shelf:
            self.shelf.discard(key)
        with suppress(OSError), self._locked(key):
            (self._folder(key) / _REFUSED).write_text(why)

    def _found(self, key: str) -> Guests | str | None:
        """What a process of this run has made, or why it could not; None if nothing whole is there."""
        folder = self._folder(key)
        with suppress(OSError):
            return (folder / _REFUSED).read_text()
        with suppress(ImageError):
            return read_record(folder / _RECORD)
        return None

    def _made_by_one(self, key: str, memory: int, make: Make, check: Check) -> Guests | str:
        with self._locked(key):
            return self._found(key) or self._made(key, memory, make, check)

    def _made(self, key: str, memory: int, make: Make, check: Check) -> Guests | str:
        guests = self._lent(key, memory, check)
        if guests is None:
            try:
                guests = make(self._empty_place(key, memory))
            except NoClones as error:
                (self._empty_place(key, memory).folder / _REFUSED).write_text(error.message)
                return error.message
            if self.shelf:
                self.shelf.keep(key, guests)
        write_record(self._folder(key) / _RECORD, guests)
        return guests

    def _lent(self, key: str, memory: int, check: Check) -> Guests | None:
        """A template that an earlier run has kept, if its clones are still good; else it goes."""
        guests = self.shelf.lend(key, self._empty_place(key, memory)) if self.shelf else None
        if self.shelf and guests:
            try:
                check(guests)
            except NoClones:
                self.shelf.discard(key)
                return None
        return guests

    def _empty_place(self, key: str, memory: int) -> Place:
        """A place for a template; what is there was damaged, or is a half, of a process that was killed."""
        place = Place(self._folder(key), self._memory_folder(memory))
        shutil.rmtree(place.folder, ignore_errors=True)
        for folder in (self.run.memory, self._root):
            for left in folder.glob(f"{place.folder.name}-*"):
                left.unlink()
        place.folder.mkdir(parents=True)
        return place

    def _memory_folder(self, needed: int) -> Path:
        """In memory, where there is a file system for that with room; else on disk."""
        try:
            self.run.memory.mkdir(mode=0o700, exist_ok=True)
            free = shutil.disk_usage(self.run.memory).free
        except OSError:
            free = 0
        available = min(free, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return self.run.memory if available > needed + _ROOM_LEFT else self._root

    def _folder(self, key: str) -> Path:
        return self._root / hashlib.sha256(key.encode()).hexdigest()[:12]

    @property
    def _root(self) -> Path:
        return self.run.path / "templates"

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Be the only one who makes this template."""
        self._root.mkdir(exist_ok=True)
        with self._folder(key).with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
