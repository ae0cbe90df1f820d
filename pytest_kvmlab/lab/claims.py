"""Claims of all processes of a user on what this machine has only so much of: first come, first served.

A claim is a file with a lock that ends with the process that has it (flock(2)), however that ends; what has
no lock is nobody's any more, and whoever sees it removes it. All is decided under one lock, which is held for
moments only: its owner reads a few files.
"""

import fcntl
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.run_folder import make_private
from pytest_kvmlab.lab.waits import until

_EVERY_SECONDS = 0.1
# It is held for milliseconds, unless its holder was stopped just then (Ctrl-Z, a debugger).
_STILL_SECONDS, _LOCK_EVERY_SECONDS = 60.0, 0.005
_SUFFIX = ".claim"

State = Literal["waiting", "blocked", "held", "kept"]


@dataclass(frozen=True)
class Claim:
    """What somebody has, or waits for.

    Attributes:
        who: what it is for, as a reader knows it.
        holder: who cannot give anything back while it waits, and has all claims of this name.
        amount: how much.
        limit: how much its holder lets all together have.
        since: when its state began, in seconds since the epoch.
        state: whether it waits, is blocked by want of something else and holds up nobody, has its turn, or
            has it for longer than its holder lives.
        file: where it is written down.
    """

    who: str
    holder: str
    amount: int
    limit: int
    since: float
    state: State = "waiting"
    file: Path = field(default=Path(), compare=False)


def taken(claims: Sequence[Claim]) -> int:
    """How much is not there for others."""
    return sum(claim.amount for claim in claims if claim.state in ("held", "kept"))


def has_turn(mine: Claim, claims: Sequence[Claim]) -> bool:
    """Whether a claim need not wait any longer.

    Args:
        mine: the claim.
        claims: all there are, oldest first, with it.

    Returns:
        True for the oldest that can ever have its turn, once there is enough. Also for the oldest of those
        that hold something if every holder waits for more: each would wait for what another one has. Who
        lets all together have less than this one does waits for its own reasons, and holds it up no more.
    """
    queue = [
        claim
        for claim in claims
        if claim.limit >= mine.limit and _is_in_queue(claim, mine) and _can_wait(claim, claims)
    ]
    waiting = {claim.holder for claim in claims if claim.state in ("waiting", "blocked")}
    holders = {claim.holder for claim in claims if claim.state == "held"}
    if holders and holders <= waiting:
        stuck = [claim for claim in queue if claim.holder in holders]
        if mine in stuck[:1]:
            return True
    return mine in queue[:1] and taken(claims) + mine.amount <= mine.limit


def _is_in_queue(claim: Claim, mine: Claim) -> bool:
    """One that is blocked is in nobody's way, and yet asks when its own turn would be."""
    return claim.state == "waiting" or (claim.state == "blocked" and claim == mine)


def _can_wait(mine: Claim, claims: Sequence[Claim]) -> bool:
    """Whether a claim has its turn once all others give back what they can: guests that are kept stay."""
    stays = [claim for claim in claims if claim.state == "kept" or _held_by(mine.holder, claim)]
    return taken(stays) + mine.amount <= mine.limit


def _held_by(holder: str, claim: Claim) -> bool:
    return claim.holder == holder and claim.state == "held"


class Beside(Protocol):
    """What somebody needs together with what a claim is on."""

    def take(self) -> bool:
        """Take it, and tell whether it was there; called often, and while nobody else can claim anything."""

    def give_back(self) -> None:
        """Let others have it."""


class Ledger:
    """The claims on one thing.

    Args:
        folder: where they are; made, for its owner alone, when it is needed.
        lasts: seconds after which what is held no longer counts.
    """

    def __init__(self, folder: Path, *, lasts: float = math.inf) -> None:
        self.folder = folder
        self.lasts = lasts

    @contextmanager
    def claims(self) -> Iterator[list[Claim]]:
        """All living claims, oldest first; none comes, goes or changes as long as the context lasts.

        Raises:
            HostError: the folder cannot be used, or is not this user's alone; or a process that looks at the
                claims does not go on.
        """
        descriptor = self._open()
        try:
            patience = Deadline(_STILL_SECONDS)
            if not until(lambda: None if _locked(descriptor) else True, patience, every=_LOCK_EVERY_SECONDS):
                raise self._stands_still(descriptor)
            files = sorted(self.folder.glob(f"*{_SUFFIX}"))
            yield [claim for file in files if (claim := _living(file)) and not self._is_over(claim)]
        finally:
            os.close(descriptor)

    @contextmanager
    def entered(self, claim: Claim) -> Iterator["Entry"]:
        """Write a claim down at the end of the queue, as long as the context lasts or this process lives."""
        with self.claims() as others:
            number = int(others[-1].file.name.partition("-")[0]) + 1 if others else 1
            file = self.folder / f"{number:08}-{secrets.token_hex(4)}{_SUFFIX}"
            entry = Entry(self, replace(claim, file=file))
        try:
            yield entry
        finally:
            entry.leave()

    def _is_over(self, claim: Claim) -> bool:
        return claim.state == "held" and time.time() - claim.since > self.lasts

    def _stands_still(self, descriptor: int) -> HostError:
        holders = ", ".join(f"process {process}" for process in _lockers(descriptor)) or "a process"
        return HostError(
            f"{holders} has held {self.folder} for {_STILL_SECONDS:g} s, and all runs wait for it",
            "is it stopped? let it go on, or end it",
        )

    def _open(self) -> int:
        try:
            obstacle = make_private(self.folder.parent) or make_private(self.folder)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            obstacle = error.strerror or str(error)
        if obstacle:
            raise HostError(
                f"{self.folder}, where runs tell each other what they use, cannot be used: {obstacle}",
                "remove it, or have its owner do that",
            )
        return descriptor


def _lockers(descriptor: int) -> list[str]:
    """The processes that have a lock on a file: proc_locks(5)."""
    inode = f":{os.fstat(descriptor).st_ino}"
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [words[4] for words in locks if words[1] == "FLOCK" and words[5].endswith(inode)]


class Entry:
    """A claim of this process in its ledger.

    Attributes:
        claim: the claim as it is now.
    """

    def __init__(self, ledger: Ledger, claim: Claim) -> None:
        """Write it down; called while the ledger is locked."""
        self._ledger = ledger
        self.claim = claim
        self._holder = claim.holder
        self._file = os.open(claim.file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # A shared lock, so that the keeper of a guest that stays can take it over without a gap.
        fcntl.flock(self._file, fcntl.LOCK_SH)
        self._write()

    def wait(
        self,
        deadline: Deadline,
        *,
        check: Callable[[], None] = lambda: None,
        tell: Callable[[Sequence[Claim]], None] = lambda _: None,
        beside: "Beside | None" = None,
    ) -> Sequence[Claim] | None:
        """Wait for the turn of the claim.

        Args:
            deadline: when to give up.
            check: raises if there is no more use in waiting.
            tell: told what there is as long as it is not the turn of this one.
            beside: what is needed together with it: both are had at once, and neither is held while the
                other is waited for.

        Returns:
            All claims at the moment of its turn, or None if it did not come in time.
        """

        def attempt() -> Sequence[Claim] | None:
            check()
            with self._ledger.claims() as claims:
                if self._has_turn(claims, beside):
                    self._become("held")
                    return claims
            tell(claims)
            return None

        return until(attempt, deadline, every=_EVERY_SECONDS)

    def _has_turn(self, claims: Sequence[Claim], beside: "Beside | None") -> bool:
        turn = has_turn(self.claim, claims)
        if beside is None or (not turn and self.claim.state == "waiting"):
            return turn
        there = beside.take()
        if there and not turn:
            beside.give_back()
        state: State = "waiting" if there else "blocked"
        if state != self.claim.state:
            self._become(state)
        return turn and there

    def take(self) -> Sequence[Claim]:
        """Have it now, whoever waits; gives all claims at this moment."""
        with self._ledger.claims() as claims:
            self._become("held")
            return claims

    def keep(self) -> None:
        """Let it last after the context, as long as this process or another that locked the file lives."""
        with self._ledger.claims():
            self._become("kept")

    def idle(self) -> None:
        """Tell that it comes back although its holder waits for more."""
        self._belong_to(secrets.token_hex(8))

    def needed(self) -> None:
        """Tell that it does not come back before its holder has what it waits for."""
        self._belong_to(self._holder)

    def rename(self, who: str) -> None:
        """Tell others that it is for something else now."""
        with self._ledger.claims():
            self.claim = replace(self.claim, who=who)
            self._write()

    def _belong_to(self, holder: str) -> None:
        with self._ledger.claims():
            self.claim = replace(self.claim, holder=holder)
            self._write()

    def leave(self) -> None:
        """Give it back, unless it is kept."""
        if self.claim.state != "kept":
            self.claim.file.unlink(missing_ok=True)
            os.close(self._file)

    def _become(self, state: State) -> None:
        self.claim = replace(self.claim, state=state, since=time.time())
        self._write()

    def _write(self) -> None:
        written = {name: value for name, value in asdict(self.claim).items() if name != "file"}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(written).encode(), 0)


def _living(file: Path) -> Claim | None:
    """A claim that somebody has; one that nobody has any more is removed."""
    try:
        with file.open("rb") as opened:
            if _locked(opened.fileno()):
                return Claim(**json.load(opened), file=file)
        file.unlink()
    except FileNotFoundError:  # given back just now, which needs no lock of the ledger
        pass
    return None


def _locked(descriptor: int) -> bool:
    """Whether somebody else has the lock; else it is held here from now on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
