"""Who has which dongle of this machine: one guest at a time, over all processes, runs, users and libvirts.

Each port that a dongle is plugged into has a file with a lock that ends with the process that has it
(flock(2)). The lock is a shared one, so that the keeper of a guest that stays can take it over without a gap;
who wants the dongle tries for an exclusive one, while it alone holds the lock of all who look.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.usb_devices import HostBus, HostDevice
from pytest_kvmlab.errors import UsbError
from pytest_kvmlab.spec.usb import UsbKeys

_ANYBODYS = 0o1777
_PREFIX = "kvmlab-usb"
_LONGEST_RECORD = 4096
# As long as a run that was killed takes to end, and its QEMU with it.
_SECONDS_TO_END = 10.0
_STARTS_OVER = "whoever has it start over just now"


def leases_folder() -> Path:
    """Where the users of this machine tell each other which dongles they use.

    Which of two places it is depends on the machine alone: a user who chose otherwise would be alone there.
    """
    lock = Path("/run/lock")
    with contextlib.suppress(OSError):
        if stat.S_IMODE(lock.stat().st_mode) == _ANYBODYS:
            return lock
    return Path("/var/tmp")  # noqa: S108 - what lies there is opened with care


@dataclass(frozen=True)
class Wish:
    """A dongle of this machine that a guest asks for."""

    guest: str
    keys: UsbKeys

    def matches(self, device: HostDevice) -> bool:
        """Whether a device is such a one."""
        asked = (self.keys.port or device.port, self.keys.serial or device.serial)
        return device.id == self.keys.id and asked == (device.port, device.serial)


@dataclass
class Lease:
    """A dongle that is one guest's alone.

    Attributes:
        wish: who asked for what.
        who: the same as others are told.
        device: what it got, as it was then; its number changes when it is plugged in anew.
        file: whose lock says that it is taken.
    """

    wish: Wish
    who: str
    device: HostDevice
    file: Path
    _descriptor: int
    _kept: bool = False

    def keep(self) -> None:
        """Let it last after its context, as long as this process or another that locked the file lives."""
        self._kept = True

    @property
    def is_held(self) -> bool:
        """Whether the dongle is this guest's still."""
        return self._descriptor >= 0

    @property
    def is_movable(self) -> bool:
        """Whether it may be on another port: a port that was asked for stays, and one that is kept, too."""
        return self.is_held and not self._kept and self.wish.keys.port is None

    def move(self, device: HostDevice, file: Path, descriptor: int) -> None:
        """Be on another port, whose lock is held already: the guest has one of the two at every moment."""
        before, self._descriptor = self._descriptor, descriptor
        # Which drivers it had is still what it had at first: in the new port they may not have come yet.
        self.device = replace(self.device, port=device.port, bus=device.bus, number=device.number)
        self.file = file
        os.close(before)

    def release(self) -> None:
        """Give it back, unless it is kept or given back already."""
        if self.is_held and not self._kept:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class Holder:
    """Who has a dongle, as that one wrote it down."""

    who: str
    since: float

    def __str__(self) -> str:
        return f"{self.who} since {time.strftime('%H:%M:%S', time.localtime(self.since))}"


@dataclass(frozen=True)
class DongleState:
    """Whether a guest could have a dongle.

    Attributes:
        name: it is free; leased, to a guest of ours; held, by a program that is none of ours; or refused,
            because this machine needs it or this user may not use it.
        why: by whom, or why; of a free one, what this user cannot see.
    """

    name: Literal["free", "leased", "held", "refused"]
    why: str = ""


@dataclass(frozen=True)
class HostUsb:
    """The dongles of this machine, and where it is written down who has them.

    Attributes:
        bus: where they are plugged in.
        folder: where the leases are.
    """

    bus: HostBus = field(default_factory=HostBus)
    folder: Path = field(default_factory=leases_folder)

    def holder(self, device: HostDevice) -> Holder | None:
        """Who has leased a device."""
        try:
            descriptor = _open(self._file(device.port), make=False)
        except FileNotFoundError:
            return None
        with _closing(descriptor):
            return None if _lock(descriptor, fcntl.LOCK_EX) else _read(descriptor)

    def never(self, device: HostDevice) -> str:
        """Why no guest of this user can ever have a device; empty if one can."""
        if needed := self.bus.needed(device):
            return needed
        if not device.is_starting_over and not self.bus.is_accessible(device):
            return f"this user may not use {self.bus.node(device)}: kvmlab doctor tells the udev rule"
        return ""

    def state(self, device: HostDevice) -> "DongleState":
        """Whether a guest could have a device now, and who or what is in the way."""
        if why := self.never(device):
            return DongleState("refused", why)
        if holder := self.holder(device):
            return DongleState("leased", str(holder))
        if device.is_starting_over:
            return DongleState("held", _STARTS_OVER)
        if stranger := self.bus.holder(device):
            return DongleState("held", stranger)
        unseen = self.bus.unseen(device)
        return DongleState("free", f"unless another user's program has {unseen} open" if unseen else "")

    def lease(self, wish: Wish, device: HostDevice, who: str) -> Lease | Holder:
        """Take a device, or tell who has it; called by the one that may look."""
        locked = self._locked(device, who)
        if isinstance(locked, Holder):
            return locked
        return Lease(wish, who, device, self._file(device.port), locked)

    def like(self, lease: Lease) -> list[HostDevice]:
        """What looks like a leased device and is in another port than that was, where it may be in any."""
        if not lease.is_movable:
            return []
        devices = (each for each in self.bus.devices() if each.port != lease.device.port)
        return [each for each in devices if lease.device.is_same(each)]

    def follow(self, lease: Lease, device: HostDevice) -> str | None:
        """Have a lease be on the port that its device was put into.

        Args:
            lease: what a guest has.
            device: the same device, or an equal one, in another port.

        Returns:
            Why it cannot be had; empty if the lease is on it now, None if another process looks just now.
        """
        with self.looking() as may_look:
            if not may_look:
                return None
            state = self.state(device)
            if state.name != "free":
                return f"{state.name}: {state.why}"
            locked = self._locked(device, lease.who)
        if isinstance(locked, Holder):
            return f"leased: {locked}"
        lease.move(device, self._file(device.port), locked)
        return ""

    @contextlib.contextmanager
    def looking(self) -> Iterator[bool]:
        """Be the one that may look for free dongles; gives whether it is this one's turn."""
        descriptor = _open(self.folder / f"{_PREFIX}.lock")
        with _closing(descriptor):
            yield _lock(descriptor, fcntl.LOCK_EX)

    def _locked(self, device: HostDevice, who: str) -> int | Holder:
        descriptor = _open(self._file(device.port))
        if not _lock(descriptor, fcntl.LOCK_EX):
            with _closing(descriptor):
                return _read(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _write(descriptor, Holder(who, time.time()))
        return descriptor

    def _file(self, port: str) -> Path:
        return self.folder / f"{_PREFIX}-{port}.lock"


@dataclass
class Supply:
    """The dongles of this machine that one guest has, and may have.

    Attributes:
        usb: all of this machine.
        leases: those that it has from the start, by what it asked for.
        get: gets another one for a source, as soon as nobody else has it.
        source: what the guest is for just now, as others are told.
    """

    usb: HostUsb
    leases: Mapping[UsbKeys, Lease]
    get: Callable[[str, UsbKeys], Lease]
    source: str

    def first(self, keys: UsbKeys) -> Lease:
        """The dongle that was asked for from the start, or another one if that was given away."""
        lease = self.leases.get(keys)
        return lease if lease and lease.is_held else self.more(keys)

    def more(self, keys: UsbKeys) -> Lease:
        """Another dongle, as soon as nobody else has it."""
        return self.get(self.source, keys)


class Dongles:
    """All dongles that the guests of a lab ask for: it gets all of them or none.

    Args:
        usb: those of this machine.
        wishes: what is asked for.
        who: for whom, as others are told.

    Attributes:
        leases: those it has.
        obstacle: why it has none, as of the last try.
    """

    def __init__(self, usb: HostUsb, wishes: Sequence[Wish], who: str) -> None:
        self.leases: list[Lease] = []
        self.obstacle = ""
        self._usb = usb
        self._wishes = wishes
        self._who = who
        self._strangers: dict[tuple[str, str], Deadline] = {}

    def take(self) -> bool:
        """Try to take all.

        Raises:
            UsbError: no waiting would help: one is not plugged in, this machine needs it, or a program that
                is none of ours has it.
        """
        if not self._wishes:
            return True
        candidates = self._candidates()
        with self._usb.looking() as may_look, contextlib.ExitStack() as undo:
            if not may_look:
                self.obstacle = f"{self._asked()}: another process looks who has which, and does not end"
                return False
            undo.callback(self.give_back)
            for wish, devices in candidates:
                self.obstacle = self._take_one(wish, devices)
                if self.obstacle:
                    return False
            undo.pop_all()
        return True

    def give_back(self) -> None:
        """Give back what it has, apart from what is kept."""
        for lease in self.leases:
            lease.release()
        self.leases.clear()

    def of(self, guest: str) -> dict[UsbKeys, Lease]:
        """The dongles of one guest, by what it asked for."""
        return {lease.wish.keys: lease for lease in self.leases if lease.wish.guest == guest}

    def _candidates(self) -> list[tuple[Wish, list[HostDevice]]]:
        """The devices that may be given for each wish; who has the least choice chooses first."""
        if not self._usb.bus.is_there:
            raise UsbError(
                f"{self._asked()} is asked for, but this machine has no USB: its kernel shows no devices",
                'a virtual dongle needs none: usb = [{ virtual = "licence", id = "0a5e:2110" }]',
                looked_at=[self._usb.bus.sysfs],
            )
        plugged = self._usb.bus.devices()
        found = [(wish, self._usable(wish, plugged)) for wish in self._wishes]
        _refuse_more_than_there_are(found)
        return sorted(found, key=lambda item: len(item[1]))

    def _usable(self, wish: Wish, plugged: Sequence[HostDevice]) -> list[HostDevice]:
        matching = [device for device in plugged if wish.matches(device)]
        if not matching:
            raise UsbError(
                f"{wish.keys.text}, which {wish.guest} asks for, is not plugged in",
                "plug it in, or correct the key usb: kvmlab usb list shows what there is",
                looked_at=[_told(device) for device in plugged if not device.is_hub] or ["nothing but hubs"],
            )
        refused = {device.port: reason for device in matching if (reason := self._usb.never(device))}
        if len(refused) == len(matching):
            raise UsbError(
                f"{wish.keys.text} is not given to {wish.guest}",
                "kvmlab usb list shows what there is, and what is free",
                looked_at=[f"{device.port}: {refused[device.port]}" for device in matching],
            )
        return [device for device in matching if device.port not in refused]

    def _take_one(self, wish: Wish, devices: Sequence[HostDevice]) -> str:
        """Take one of several devices; else the reason why none could be had."""
        taken = {lease.device.port for lease in self.leases}
        told = []
        for device in (device for device in devices if device.port not in taken):
            if device.is_starting_over:
                told.append(f"{device.port} is held by {_STARTS_OVER}")
                continue
            leased = self._usb.lease(wish, device, f"{wish.guest} of {self._who}")
            if isinstance(leased, Holder):
                told.append(f"{device.port} is held by {leased}")
            elif stranger := self._usb.bus.holder(device):
                leased.release()
                told.append(f"{device.port} is held by {stranger}")
                self._refuse_to_wait_for(stranger, wish, device)
            else:
                self.leases.append(leased)
                return ""
        return f"{wish.keys.text}: {', '.join(told)}"

    def _refuse_to_wait_for(self, stranger: str, wish: Wish, device: HostDevice) -> None:
        """A program that is none of ours keeps what it has; one of a run that was killed ends soon."""
        patience = self._strangers.setdefault((device.port, stranger), Deadline(_SECONDS_TO_END))
        if patience.passed:
            raise UsbError(
                f"{wish.keys.text}, which {wish.guest} asks for, is held by {stranger}, which keeps it",
                "end that program, or use another dongle",
                looked_at=[_told(device)],
            )

    def _asked(self) -> str:
        return ", ".join(wish.keys.text for wish in self._wishes)


def _refuse_more_than_there_are(found: Sequence[tuple[Wish, Sequence[HostDevice]]]) -> None:
    """Where there are fewer dongles than wishes for them, waiting would not help."""
    given: set[str] = set()
    for wish, devices in sorted(found, key=lambda item: len(item[1])):
        free = [device.port for device in devices if device.port not in given]
        if not free:
            same = [other.guest for other, _ in found if other.keys.id == wish.keys.id]
            raise UsbError(
                f"{len(devices)} of {wish.keys.id} {'is' if len(devices) == 1 else 'are'} plugged in, and "
                f"{len(same)} are asked for, by {', '.join(dict.fromkeys(same))}",
                "plug in another one, or let fewer guests have one",
                looked_at=[_told(device) for device in devices],
            )
        given.add(free[0])


def _told(device: HostDevice) -> str:
    serial = f"#{device.serial}" if device.serial else ""
    return f"{device.id}@{device.port}{serial}  {device.label}".rstrip()


def _open(file: Path, *, make: bool = True) -> int:
    """Open a file that every user of this machine may lock; none is ever removed.

    Linux does not let one make a file that is there already as another user's, in a folder of everybody's
    (sysctl fs.protected_regular): so it is made only where there is none.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = _open_or_make(file, flags) if make else os.open(file, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _unusable(file, "it is no file")
    return descriptor


def _unusable(file: Path, why: str) -> UsbError:
    return UsbError(
        f"{file}, where runs tell each other which dongles they use, cannot be used: {why}",
        "remove it, or have its owner do that",
    )


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _open_or_make(file: Path, flags: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(file, flags)
    try:
        descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(file, flags)
    os.fchmod(descriptor, 0o666)
    return descriptor


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(descriptor: int) -> Holder:
    """What the holder wrote; anybody may have written anything there."""
    try:
        record = json.loads(os.pread(descriptor, _LONGEST_RECORD, 0))
        who = "".join(letter if letter.isprintable() else "?" for letter in str(record["who"]))
        since = float(record["since"])
        time.localtime(since)  # also of what no clock shows
        return Holder(who, since)
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return Holder("somebody who did not write down a name", time.time())


def _write(descriptor: int, holder: Holder) -> None:
    text = json.dumps({"who": holder.who[:1000], "since": holder.since}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
