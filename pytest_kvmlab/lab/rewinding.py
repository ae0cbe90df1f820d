"""Clean guests by going back: booted once, and set back in place before each further test."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from pytest_kvmlab.errors import KvmlabError, WaitTimeout
from pytest_kvmlab.keeper.faults import Faults
from pytest_kvmlab.lab.freezing import at_rest
from pytest_kvmlab.lab.frozen import Rest
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.stage import Together
from pytest_kvmlab.lab.waking import go_on

_CLEAN = "kvmlab-clean"


class NoWayBack(KvmlabError):
    """Such guests cannot be set back, for the reason that the message gives."""


@dataclass(frozen=True)
class Rewindable:
    """Guests that can be set back.

    Attributes:
        up: the guests.
        undo: ends them.
        rest: what each of them waited for when its snapshot was taken.
    """

    up: Together
    undo: ExitStack
    rest: dict[str, Rest]


@dataclass
class Rewinding:
    """Keeps guests between tests.

    Attributes:
        give_up: ends guests that are of no more use.
    """

    give_up: Callable[[ExitStack], None]
    _idle: dict[str, Rewindable] = field(default_factory=dict)

    def keep(self, up: Together, undo: Callable[[], ExitStack]) -> Rewindable:
        """Take snapshots of guests that have just got ready.

        Args:
            up: the guests.
            undo: gives what ends them, once they are worth being kept.

        Raises:
            NoWayBack: QEMU cannot; the guests are as they were.
        """
        try:
            rest = {name: at_rest(guest) for name, guest in up.guests.items()}
            for guest in up.guests.values():
                guest.snapshot(_CLEAN)
        except KvmlabError as error:
            raise NoWayBack(error.message) from error
        return Rewindable(up, undo(), rest)

    def take(self, kind: str) -> Rewindable | None:
        """Guests as they were when they were kept; None if there are none, or they cannot be set back.

        Args:
            kind: what has to be equal for guests to be alike.
        """
        found = self._idle.pop(kind, None)
        if found is None:
            return None
        try:
            for name, guest in found.up.guests.items():
                _rewind(guest, found.rest[name])
            if found.up.wiring.faults != Faults():
                found.up.wiring.heal()
        except (KvmlabError, WaitTimeout):  # the last test cut its power, or worse
            self.give_up(found.undo)
            return None
        return found

    def give_back(self, kind: str, guests: Rewindable) -> None:
        """Have guests for the next test; those that stay after the run are of no more use here."""
        if guests.up.left or kind in self._idle:
            self.give_up(guests.undo)
        else:
            self._idle[kind] = guests

    def close(self) -> None:
        """End all guests."""
        while self._idle:
            self.give_up(self._idle.popitem()[1].undo)


def _rewind(guest: Guest, rest: Rest) -> None:
    if guest.usb:
        raise NoWayBack("the last test plugged something into its USB ports")
    guest.hang_up()
    guest.revert(_CLEAN)
    go_on(guest, rest)
