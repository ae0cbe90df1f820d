"""Making a template: guests come to rest, and stop for ever at a moment that clones start from."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.drivers.console_log import transcript_of
from pytest_kvmlab.errors import GuestError, KvmlabError, WaitTimeout
from pytest_kvmlab.lab.disks import OwnDisk
from pytest_kvmlab.lab.frozen import BLANKS, CONSOLE, FIRMWARE, STATE, Channel, Frozen, Rest
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.lab.waking import ask_over, tell_time

_REST_SECONDS = 10.0
_SAMPLE_SECONDS = 0.25
_CALM_SAMPLES = 3
# Of one processor: what an idle kernel needs without KVM is a third of it.
_IDLE_SHARE = 0.15
_STEP_SECONDS = 30.0
_MOST_SECONDS_OFF = 1.0
_AGENT_SECONDS = 5
# `exec`: no shell has to wait for it, or be there at all. Not every `date` knows fractions, nor every login
# is root's; a cloud image lets its user become root.
_SET_CLOCK = tuple(
    f"exec {become}date -u -s @{{:.{places}f}} >/dev/null" for become in ("", "sudo -n ") for places in (3, 0)
)


@dataclass(frozen=True)
class Candidate:
    """A guest that is to be frozen.

    Attributes:
        guest: it is ready, and its memory is in a file.
        disks: what it writes to.
        folder: where its disks and keys are, and where the rest is put.
    """

    guest: Guest
    disks: Sequence[OwnDisk]
    folder: Path


def freeze(candidates: Sequence[Candidate]) -> list[Frozen]:
    """Stop guests at one moment, all of them together, and write down what they were then.

    Args:
        candidates: those of a lab, or one.

    Returns:
        What clones of each are started from.

    Raises:
        KvmlabError: a guest breaks meanwhile, or QEMU cannot.
    """
    rests = [at_rest(candidate.guest) for candidate in candidates]
    for candidate in candidates:
        candidate.guest.machine.domain.suspend()
    return [_frozen(candidate, rest) for candidate, rest in zip(candidates, rests, strict=True)]


def at_rest(guest: Guest) -> Rest:
    """Wait until a guest has nothing to do.

    Args:
        guest: a guest that is ready.

    Returns:
        What it then waits for. Connections to it over a network are closed.

    Raises:
        KvmlabError: it breaks meanwhile, or nobody may set its clock.
    """
    _calm_down(guest)
    clock, channel = _way_to_set_clock(guest)
    agent = guest.machine.domain.agent_answers(seconds=_AGENT_SECONDS)
    guest.hang_up()
    _calm_down(guest)
    return Rest(guest.serial.session, clock, channel, agent)


def _calm_down(guest: Guest) -> None:
    """Wait until QEMU has little to do for a guest; a guest that never rests is frozen as it is."""
    domain, calm = guest.machine.domain, 0
    deadline = Deadline(_REST_SECONDS)  # whatever the run's scale: a busy guest will not be calm later either
    while calm < _CALM_SAMPLES and not deadline.passed:
        guest.machine.check("freeze")
        share = _share_used(domain.seconds_used)
        calm = calm + 1 if share < _IDLE_SHARE else 0


def _share_used(seconds_used: Callable[[], float]) -> float:
    """How much of a processor is used just now."""
    before, started = seconds_used(), time.monotonic()
    until(lambda: None, Deadline(_SAMPLE_SECONDS), every=_SAMPLE_SECONDS)
    return (seconds_used() - before) / (time.monotonic() - started)


def _way_to_set_clock(guest: Guest) -> tuple[str, Channel]:
    """What sets the clock of a guest, and over which channel: the serial line is the quickest, where it may.

    What was written is on the guest's disk before it is frozen, so that a clone whose power is cut boots.
    """
    channels: tuple[Channel, ...] = ("serial", "ssh") if guest.spec.login.channel == "ssh" else ("serial",)
    refused = []
    for channel in channels:
        with suppress(GuestError, WaitTimeout):
            ask_over(guest, channel, "sync")
            for command in _SET_CLOCK:
                if not (complaint := tell_time(guest, channel, command)):
                    return command, channel
                refused.append(f"{command}, over {channel}: {complaint}")
    raise GuestError(
        f"nobody may set the clock of {guest.name}, so it would be late ever after: no login is root's",
        phase="freeze",
        looked_at=refused,
    )


def _frozen(candidate: Candidate, rest: Rest) -> Frozen:
    machine, folder = candidate.guest.machine, candidate.folder
    sha256 = machine.freeze(folder / STATE)
    machine.power_off()
    machine.console_log.rename(folder / CONSOLE)
    machine.transcript.rename(transcript_of(folder / CONSOLE))
    if machine.plan.uefi:
        machine.plan.uefi.vars.rename(folder / FIRMWARE)
    for number, disk in enumerate(candidate.disks):
        qemu_img.create_overlay(disk.file.path, "qcow2", folder / BLANKS.format(number))
    memory = machine.plan.memory_file
    assert memory  # noqa: S101  whoever made the guest to be frozen gave it one
    memory.path.chmod(0o600)
    disks = tuple(disk.file.path for disk in candidate.disks)
    return Frozen(folder, memory.path, sha256, rest, disks)


def what_is_wrong(one: Guest, other: Guest) -> str:
    """Look at two clones of one template that have just been woken: are they machines of their own?

    Args:
        one: a clone.
        other: another.

    Returns:
        What is wrong with them; empty if nothing is.
    """
    try:
        return _same_random(one, other) or _wrong_clock(one) or _stuck(one) or _unreachable(one) or _mute(one)
    except (KvmlabError, WaitTimeout, ValueError) as error:
        return "a clone broke: " + str(error).partition("\n")[0]


def _same_random(one: Guest, other: Guest) -> str:
    """Only a kernel that is told of its second life (QEMU docs/specs/vmgenid) has other random numbers."""
    question = "dd if=/dev/urandom bs=32 count=1 2>/dev/null | od -An -v -tx1"
    answers = [_asked(guest, question) for guest in (one, other)]
    return "two clones have the same random numbers" if answers[0] == answers[1] else ""


def _wrong_clock(guest: Guest) -> str:
    asked = time.time()
    shown = float(_asked(guest, "date +%s"))
    # A full second is lost in the answer, which is a whole number.
    if shown < asked - _MOST_SECONDS_OFF - 1:
        return f"the clock of a clone is {asked - shown:.1f} s behind"
    if shown > (now := time.time()) + _MOST_SECONDS_OFF:
        return f"the clock of a clone is {shown - now:.1f} s ahead"
    return ""


def _stuck(guest: Guest) -> str:
    return "" if guest.ask("sleep 0.1", guest.deadline(_STEP_SECONDS)).ok else "a clone's timers stand still"


def _unreachable(guest: Guest) -> str:
    if guest.spec.login.channel != "ssh":
        return ""
    try:
        guest.machine.dial_greeter(22, guest.deadline(_STEP_SECONDS).seconds).close()
    except OSError as error:
        return f"a clone is not reached over the network: {error}"
    return ""


def _mute(guest: Guest) -> str:
    """Whether its guest agent no longer answers; libvirt hears of it only some time after a clone starts."""
    domain, frozen = guest.machine.domain, guest.machine.frozen
    if frozen is None or not frozen.rest.agent:
        return ""
    answered = until(
        lambda: domain.agent_answers(seconds=_AGENT_SECONDS) or None, guest.deadline(_STEP_SECONDS)
    )
    return "" if answered else "the guest agent of a clone does not answer"


def _asked(guest: Guest, question: str) -> str:
    """An answer of a guest: over the serial line where there is a shell, since that is the quickest."""
    step = guest.deadline(_STEP_SECONDS)
    if guest.serial.session:
        return guest.serial.run(question, timeout=step.seconds).stdout.strip()
    return guest.ask(question, step).stdout.strip()
