"""What a guest is told when it goes on after a while of which it noticed nothing."""

import time

from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.lab.commands import Commands
from pytest_kvmlab.lab.frozen import Rest

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
    if rest.session is None:
        return
    guest.serial.resume(rest.session)
    if rest.clock:
        _set_clock(guest, rest.clock)


def _set_clock(guest: Commands, command: str) -> None:
    """Set the clock of a guest, again if that took its time, as first commands on a busy machine do."""
    for _ in range(_ATTEMPTS):
        started = time.time()
        result = guest.serial.run_at_once(
            command.format(started), timeout=guest.deadline(_STEP_SECONDS).seconds
        )
        if not result.ok:
            raise GuestError(f"the clock of {guest.name} cannot be set: {result.stdout}", phase="clone")
        if time.time() - started < _SHARP_SECONDS:
            return
