"""What a guest is told when it goes on after a while of which it noticed nothing."""

import time

from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.lab.commands import Commands
from pytest_kvmlab.lab.frozen import Channel, Rest

_STEP_SECONDS = 30.0
# A command that took longer than this may have set the clock to what it was as long ago.
_SHARP_SECONDS, _ATTEMPTS = 0.8, 5


def go_on(guest: Commands, rest: Rest) -> None:
    """Go on where a guest stopped, with the server of commands on its serial line, at the right time.

    Args:
        guest: a guest that has just begun to run again.
        rest: what it waited for when it stopped.

    Raises:
        GuestError: it does not answer, or its clock cannot be set.
    """
    if rest.session:
        guest.serial.resume(rest.session)
    if rest.channel == "ssh":  # logging in takes longer than a clock may be late
        guest.open_ssh(guest.deadline(_STEP_SECONDS))
    _set_clock(guest, rest)


def tell_time(guest: Commands, channel: Channel, command: str) -> str:
    """Set the clock of a guest.

    Args:
        guest: the guest.
        channel: over which, whatever its tests use.
        command: what sets it, with `{}` for the seconds since the epoch.

    Returns:
        What the guest objects; empty if nothing.
    """
    result = ask_over(guest, channel, command.format(time.time()))
    said = (result.stdout + result.stderr).strip()
    # That of busybox complains, and ends as if all had gone well; other words are of the shell's own start.
    if result.ok and "date:" not in said:
        return ""
    return said or f"exit status {result.exit_status}"


def ask_over(guest: Commands, channel: Channel, command: str) -> CommandResult:
    """Run a command of ours over one channel of a guest; over the serial line, in a copy of the shell there.

    Args:
        guest: the guest.
        channel: which one, whatever its tests use.
        command: shell text.
    """
    deadline = guest.deadline(_STEP_SECONDS)
    if channel == "serial":
        return guest.serial.run_at_once(command, timeout=deadline.seconds)
    return guest.ask(command, deadline)


def _set_clock(guest: Commands, rest: Rest) -> None:
    """Set the clock of a guest, again if that took its time, as first commands on a busy machine do."""
    for _ in range(_ATTEMPTS):
        started = time.time()
        if complaint := tell_time(guest, rest.channel, rest.clock):
            raise GuestError(f"the clock of {guest.name} cannot be set: {complaint}", phase="clone")
        if time.time() - started < _SHARP_SECONDS:
            return
