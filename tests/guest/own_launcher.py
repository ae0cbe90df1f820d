"""A launcher of a test's own, in the run of all: guests become clean in the way that the test chooses."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pytest_kvmlab import Guest
from pytest_kvmlab.lab.capacity import Capacity
from pytest_kvmlab.lab.frozen import Frozen
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.options import Reset
from pytest_kvmlab.spec.validation import validate

_MANY = 1000


@contextmanager
def own_launcher(
    launcher: Launcher, reset: Reset = "clone", *, pool: int = 0, capacity: Capacity | None = None
) -> Iterator[Launcher]:
    """A launcher whose guests all end well.

    Args:
        launcher: that of the run.
        reset: how guests become clean.
        pool: how many clones wait.
        capacity: what gives them memory and dongles, if not that of the run.
    """
    capacity = capacity or launcher.capacity
    own = Launcher(launcher.assembly, launcher.images, capacity, reset, pool, to_come=_MANY)
    try:
        yield own
    finally:
        assert own.finish() == []


def started(launcher: Launcher, *, source: str = "here", **keys: object) -> AbstractContextManager[Guest]:
    """A guest of the micro image, or of the one that the keys name."""
    asked = validate(GuestKeys, {"image": "micro", **keys}, source=source)
    return launcher.guest("guest", asked, source=source, witness=lambda *_: False)


def frozen(guest: Guest) -> Frozen:
    """What a clone was started from."""
    assert guest.machine.frozen, f"{guest.name} is no clone"
    return guest.machine.frozen


def ways(launcher: Launcher, source: str = "here") -> list[tuple[str, str]]:
    """How the guests that one source asked for became clean, and why in no quicker way."""
    return [(event.name, event.outcome) for event in launcher.assembly.journal.of(source, "reset")]


def qemu_of(guest: Guest) -> Path:
    """What the kernel tells of the process that is a guest."""
    name = f"guest={guest.domain.name()},".encode()
    (found,) = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if name in _words(path)]
    return found


def _words(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""
