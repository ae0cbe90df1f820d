"""The memory and the processors of this machine, shared by the guests of all runs of its user.

Memory is reserved for a whole lab at once and given back when its guests are gone: two labs that each had a
half would wait for each other. What counts is what guests were promised: they touch it little by little, so
that the kernel's own account of what is free knows nothing of it yet.
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import HostError, UsbError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.claims import Claim, Entry, Ledger, taken
from pytest_kvmlab.lab.dongles import Dongles, HostUsb, Lease, Wish
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.usb import UsbKeys

_SHARE_OF_GUESTS = 0.9  # the rest is for QEMU itself, the tests and the system
_MEMORY, _BOOTS = "memory-1", "boots-1"  # the number changes with what is written into claims
# What boots for longer hangs or waits for something; it is not to hold up everyone else's guests.
_TURN_SECONDS = 120.0
_EVERY_SECONDS = 0.1
_MIB, _GIB = 2**20, 2**30


def claims_folder() -> Path:
    """Where all runs of this user tell each other what they use, wherever they have their folders."""
    return Path(f"/var/tmp/kvmlab-{os.getuid()}-claims")  # noqa: S108 - refused if it is anybody else's


@dataclass(frozen=True)
class Capacity:
    """What one process of a run may use of this machine.

    Attributes:
        run: the run's id.
        worker: the process's name within the run.
        limit: bytes of memory that guests may have altogether; None: nine tenths of what this machine has.
        wait: seconds to wait for memory, or for a turn to boot.
        journal: where it is noted who had to wait, and what was given although there was not enough.
        progress: told what is being waited for.
        folder: where the claims of all runs are.
        usb: the dongles of this machine.
    """

    run: str
    worker: str
    limit: int | None
    wait: float
    journal: Journal
    progress: Progress
    folder: Path = field(default_factory=claims_folder)
    usb: HostUsb = field(default_factory=HostUsb)
    _holder: str = field(default_factory=lambda: secrets.token_hex(8))

    @contextmanager
    def memory(
        self,
        amount: int,
        source: str,
        *,
        dongles: Dongles | None = None,
        at_once: bool = False,
        wait: bool = True,
        make_room: Callable[[], None] = lambda: None,
    ) -> Iterator[Entry]:
        """Reserve memory as long as the context lasts.

        Args:
            amount: bytes, for all guests of a lab together.
            source: what they are for, for messages.
            dongles: what its guests ask for of this machine's USB devices: it gets them with the memory.
            at_once: do not wait, even if there is not enough: others wait for what these guests do.
            wait: until there is enough; else it is to be had now or never.
            make_room: gives back what the same holder could do without; called if there is not enough.

        Yields:
            The reservation; who keeps it has to lock its file before this process ends.

        Raises:
            HostError: there will never be as much, or there was not in time; the message says who has it.
            UsbError: the same of its dongles.
        """
        ledger, claim = self._memory, self._claim(source, self._holder, amount, self._limit)
        with ledger.entered(claim) as entry:
            started = time.monotonic()
            if at_once:
                claims = entry.take()
            else:
                self._make_room(claim, ledger, make_room)
                claims = self._waited(entry, dongles, self.wait if wait else 0.0)
            self._note(source, claim, claims, time.monotonic() - started)
            try:
                yield entry
            finally:
                if dongles:
                    dongles.give_back()

    def has_spare_memory(self, amount: int) -> bool:
        """Whether there is so much memory that nobody has or waits for.

        Args:
            amount: bytes.
        """
        with self._memory.claims() as claims:
            return sum(claim.amount for claim in claims) + amount <= self._limit

    @property
    def _memory(self) -> Ledger:
        return Ledger(self.folder / _MEMORY)

    @property
    def _limit(self) -> int:
        return memory_for_guests() if self.limit is None else self.limit

    def dongles(self, wishes: Sequence[Wish], source: str) -> Dongles:
        """The dongles of this machine that guests ask for, to be had together with their memory.

        Args:
            wishes: of all guests of a lab.
            source: what they are for, for messages.
        """
        return Dongles(self.usb, wishes, self.who(source))

    def dongle(self, guest: str, source: str, keys: UsbKeys) -> Lease:
        """One more dongle for a guest that runs, as soon as nobody else has it.

        Args:
            guest: the guest.
            source: what it is for, for messages.
            keys: what is asked for.

        Raises:
            UsbError: it is not there, or was not to be had in time; the message says who has it.
        """
        dongles = self.dongles([Wish(guest, keys)], source)

        def attempt() -> Lease | None:
            if dongles.take():
                return dongles.leases[0]
            self._tell_of(dongles)
            return None

        if lease := until(attempt, Deadline(self.wait), every=_EVERY_SECONDS):
            return lease
        raise self._in_vain(source, dongles)

    @contextmanager
    def boot(self, name: str, check: Callable[[], None]) -> Iterator[None]:
        """Take a turn to boot a guest: more at once than there are processors would make each of them late.

        Who got no turn in time boots even so: that is late for all, but breaks nothing.

        Args:
            name: the guest.
            check: raises if the guest need not boot any more.
        """
        # Each guest is a holder of its own: none needs another turn to finish its own.
        claim = self._claim(name, secrets.token_hex(8), 1, len(os.sched_getaffinity(0)))
        with Ledger(self.folder / _BOOTS, lasts=_TURN_SECONDS).entered(claim) as entry:
            if entry.wait(Deadline(self.wait), check=check) is None:
                entry.take()
            yield

    def _claim(self, source: str, holder: str, amount: int, limit: int) -> Claim:
        return Claim(self.who(source), holder, amount, limit, time.time())

    def who(self, source: str) -> str:
        """Name who has something, as a reader of another run knows it."""
        return f"{source} (run {self.run}, {self.worker}, process {os.getpid()})"

    def _make_room(self, claim: Claim, ledger: Ledger, make_room: Callable[[], None]) -> None:
        """What is larger than all there is, or waits for what its own holder has, would wait for nothing."""
        with ledger.claims() as claims:
            enough = taken(claims) + claim.amount <= claim.limit
            own = [each for each in claims if each.holder == claim.holder and each.state == "held"]
        if taken(own) + claim.amount > claim.limit:
            raise HostError(
                f"{claim.who} needs {_size(claim.amount)} of memory for its guests"
                + (f", beside {_size(taken(own))} that it has" if own else "")
                + f"; all guests on this machine may have {_size(claim.limit)}",
                "give its guests less memory, or set --kvm-memory if there is more than that",
                looked_at=[_told(each) for each in own],
            )
        if not enough:
            make_room()

    def _waited(self, entry: Entry, dongles: Dongles | None, seconds: float) -> Sequence[Claim]:
        """All claims at the moment at which one had its turn; who waits for it is told of every change."""
        mine, seen = entry.claim, _Changes(partial(self._tell, entry.claim, dongles))
        claims = entry.wait(Deadline(seconds), tell=seen, beside=dongles)
        if claims is None and dongles and dongles.obstacle:
            raise self._in_vain(mine.who, dongles)
        if claims is None:
            raise HostError(
                f"{mine.who} waited {seconds:g} s in vain for memory: {_size(mine.amount)}, where "
                f"all guests together may have {_size(mine.limit)}",
                "let it wait longer (--kvm-wait), end kept guests (kvmlab reap --kept), or use fewer workers",
                looked_at=[_told(each) for each in seen.last if each != mine],
            )
        return claims

    def _tell(self, mine: Claim, dongles: Dongles | None, claims: Sequence[Claim]) -> None:
        if dongles and dongles.obstacle:
            self._tell_of(dongles)
            return
        holders = ", ".join(each.who for each in claims if each.state != "waiting")
        self.progress(f"waiting for memory: {_size(mine.amount)}, held by {holders or 'nobody'}", None)

    def _tell_of(self, dongles: Dongles) -> None:
        self.progress(f"waiting for dongle {dongles.obstacle}", None)

    def _in_vain(self, who: str, dongles: Dongles) -> UsbError:
        return UsbError(
            f"{who} waited {self.wait:g} s in vain for dongle {dongles.obstacle}",
            "let it wait longer (--kvm-wait), end kept guests (kvmlab reap --kept), or use fewer workers",
        )

    def _note(self, source: str, mine: Claim, others: Sequence[Claim], waited: float) -> None:
        """Write down what is out of the ordinary; `others` are claims of the moment before it was given."""
        too_much = taken(others) + mine.amount - mine.limit
        outcome = f"{_size(too_much)} more than there is were given" if too_much > 0 else ""
        if outcome or waited > 1:
            self.journal.note(source, "memory", _size(mine.amount), seconds=waited, outcome=outcome)


class _Changes:
    """Tells what there is only when it is something else than before."""

    def __init__(self, tell: Callable[[Sequence[Claim]], None]) -> None:
        self.last: Sequence[Claim] = ()
        self._tell = tell

    def __call__(self, claims: Sequence[Claim]) -> None:
        if claims != self.last:
            self.last = claims
            self._tell(claims)


def memory_for_guests(
    meminfo: Path = Path("/proc/meminfo"), cgroups: Path = Path("/sys/fs/cgroup"), own: Path | None = None
) -> int:
    """How much memory guests may have altogether: nine tenths of what this machine lets us have.

    Args:
        meminfo: what the kernel says about the machine (proc(5)).
        cgroups: where control groups are mounted.
        own: says which control group is this process's (cgroups(7)).

    Returns:
        Bytes.
    """
    found = re.search(r"^MemTotal: +(\d+) kB", meminfo.read_text(), re.MULTILINE)
    total = int(found[1]) * 1024 if found else 0
    limits = _cgroup_limits(cgroups, own or Path("/proc/self/cgroup"))
    return int(min([total, *limits]) * _SHARE_OF_GUESTS)


def _cgroup_limits(cgroups: Path, own: Path) -> Iterator[int]:
    """What this process's control group and those above it may use (kernel: admin-guide/cgroup-v2)."""
    found = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE)
    if found is None:
        return
    group = Path(found[1])
    for each in (group, *group.parents):
        try:
            limit = (cgroups / each / "memory.max").read_text().strip()
        except OSError:  # the group at the top has no limit, and in a container not all are seen
            continue
        if limit.isdigit():
            yield int(limit)


def _told(claim: Claim) -> str:
    seconds = max(0, time.time() - claim.since)
    state = claim.state if claim.state in ("held", "kept") else "is waited for"
    return f"{_size(claim.amount)} {state} by {claim.who}, since {seconds:.0f} s"


def _size(amount: int) -> str:
    return f"{amount / _GIB:.3g} GiB" if amount >= _GIB else f"{amount / _MIB:.3g} MiB"
