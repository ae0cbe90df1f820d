"""Guests that belong together, with all that they need of this machine, not switched on yet."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pytest_kvmlab.lab.assembly import Assembly, Parts
from pytest_kvmlab.lab.capacity import Capacity
from pytest_kvmlab.lab.claims import Entry
from pytest_kvmlab.lab.dongles import Lease, Supply
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.wanted import Asked, Wanted
from pytest_kvmlab.lab.wiring import NO_WIRING, Wiring, wired
from pytest_kvmlab.spec.usb import UsbKeys

PartsFor = Callable[[Asked, Path], Parts]
"""Makes the parts of a guest; the folder is the guest's own."""


@dataclass(frozen=True)
class Made:
    """A guest, what it was put together from, and what undoes it."""

    guest: Guest
    parts: Parts
    undo: ExitStack


@dataclass(frozen=True)
class Together:
    """Guests that belong together, with what they need of this machine; those `left` stay after the run."""

    made: Sequence[Made]
    wiring: Wiring
    memory: Entry
    left: list[Guest] = field(default_factory=list)

    @property
    def guests(self) -> dict[str, Guest]:
        """The guests by name."""
        return {made.guest.name: made.guest for made in self.made}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep their memory as long as the context lasts; after it, who waits for memory waits for theirs."""
        self.memory.needed()
        try:
            yield
        finally:
            self.memory.idle()


@dataclass(frozen=True)
class Stage:
    """Where the guests of one process of a run are put together.

    Attributes:
        assembly: puts each together.
        capacity: gives them memory and dongles, and turns to boot.
        make_room: ends guests that nobody uses just now.
    """

    assembly: Assembly
    capacity: Capacity
    make_room: Callable[[], None] = lambda: None

    def together(
        self, wanted: Wanted, undo: ExitStack, parts: Sequence[PartsFor], *, wait: bool = True
    ) -> Together:
        """Put guests together.

        Args:
            wanted: what they are.
            undo: takes them apart.
            parts: what each of them is made from.
            wait: for memory and dongles, if need be.

        Raises:
            HostError: this machine lacks something, or does not have it just now.
            ConfigError: spec and image do not fit together.
            ImageError: a disk cannot be made.
        """
        dongles = self.capacity.dongles(wanted.dongles, wanted.source)
        make_room = self.make_room if wait else lambda: None
        memory = undo.enter_context(
            self.capacity.memory(
                wanted.memory, wanted.source, dongles=dongles, wait=wait, make_room=make_room
            )
        )
        host, worker = self.assembly.host, self.assembly.worker
        wiring = undo.enter_context(wired(host, worker, wanted.networks, wanted.cards, source=wanted.source))
        made = [
            undo.enter_context(self._made(asked, wiring, each, dongles.of(asked.name)))
            for asked, each in zip(wanted.guests, parts, strict=True)
        ]
        return Together(made, wiring, memory)

    def hand_over(self, up: Together, source: str) -> None:
        """Let guests that waited be those of who uses them from now on, whatever else they take.

        Args:
            up: the guests.
            source: what they are for, as others are told.
        """
        up.memory.rename(self.capacity.who(source))
        for guest in up.guests.values():
            guest.usb.serve(source)

    def alone(self, asked: Asked, parts: PartsFor, undo: ExitStack) -> Guest:
        """Put one guest together that is of no lab, and has to have its memory at once."""
        undo.enter_context(self.capacity.memory(asked.spec.memory, asked.source, at_once=True))
        return undo.enter_context(self._made(asked, NO_WIRING, parts, {})).guest

    @contextmanager
    def _made(
        self, asked: Asked, wiring: Wiring, parts_for: PartsFor, leases: Mapping[UsbKeys, Lease]
    ) -> Iterator[Made]:
        """A guest that is not switched on yet, and is switched off at the end, unless it was left."""
        with ExitStack() as undo:
            folder = self.assembly.new_folder(asked.name)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            parts = parts_for(asked, folder)
            get = partial(self.capacity.dongle, asked.name)
            dongles = Supply(self.capacity.usb, leases, get, asked.source)
            guest = self.assembly.guest(asked, wiring, folder, parts, dongles)
            undo.callback(guest.close)
            yield Made(guest, parts, undo)
