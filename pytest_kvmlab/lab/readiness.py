"""When a guest counts as ready: it proves it; nobody sleeps and hopes."""

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import GuestError, WaitTimeout
from pytest_kvmlab.lab.addresses_seen import prove_addresses
from pytest_kvmlab.lab.conditions import Conditions
from pytest_kvmlab.lab.usb_seen import prove_plugged
from pytest_kvmlab.spec.readiness import CommandReady, ConsoleReady, PortReady, Readiness, UnitReady

_TAIL_LINES = 12


def prove_ready(guest: Conditions, deadline: Deadline) -> None:
    """Wait until a guest has proved that it is up: its channel answers, it has its USB devices, it says so.

    Then it must have the addresses that it was to have.

    Args:
        guest: a guest that has just been switched on.
        deadline: for all of it.

    Raises:
        GuestError: it did not; the message names the phase and what was seen.
    """
    if (channel := guest.spec.login.channel) != "none":
        with guest.machine.phase(channel):
            open_channel(guest, deadline)
    prove_useful(guest, deadline)
    prove_addresses(guest, deadline)


def prove_useful(guest: Conditions, deadline: Deadline) -> None:
    """Wait until a guest that answers has its USB devices, and has given its own proof.

    Args:
        guest: a guest whose channel is open.
        deadline: for all of it.

    Raises:
        GuestError: it did not; the message names the phase and what was seen.
    """
    prove_plugged(guest, deadline)
    if guest.spec.ready is not None:
        with guest.machine.phase("ready"):
            _prove(guest, guest.spec.ready, deadline)


def open_channel(guest: Conditions, deadline: Deadline) -> None:
    """Open the way in that a guest's login names, as soon as the guest lets us.

    Args:
        guest: a guest that is switched on.
        deadline: when to give up.

    Raises:
        GuestError: it does not in time, or never will.
    """
    match guest.spec.login.channel:
        case "ssh":
            guest.open_ssh(deadline)
        case "serial":
            _reach_shell(guest, deadline)


def _reach_shell(guest: Conditions, deadline: Deadline) -> None:
    login = guest.spec.login
    password = login.password.get_secret_value() if login.password else None
    try:
        guest.serial.login(login.user, password, timeout=deadline.remaining)
    except GuestError as error:
        guest.machine.check("serial")
        raise GuestError(
            f"{guest.name} showed no shell on its serial line within {deadline.seconds:g} s: {error}",
            "does its kernel have console=ttyS0, and does something log in or ask for a login there?",
            phase="serial",
            looked_at=guest.machine.serial.tail(_TAIL_LINES),
        ) from error


def _prove(guest: Conditions, condition: Readiness, deadline: Deadline) -> None:
    # The verbs multiply their timeouts by the run's scale; this deadline has been multiplied already.
    left = deadline.remaining / guest.timeout_scale
    try:
        match condition:
            case UnitReady(unit):
                guest.wait_for_unit(unit, timeout=left)
            case PortReady(port):
                guest.wait_for_port(port, timeout=left)
            case ConsoleReady(pattern):
                guest.wait_for_console(pattern, timeout=left)
            case CommandReady(command):
                guest.wait_until_succeeds(command, timeout=left)
    except WaitTimeout as error:
        raise GuestError(
            f"{guest.name} did not get ready: {error}",
            "check the image's 'ready', or give it more time",
            phase="ready",
            looked_at=guest.machine.serial.tail(_TAIL_LINES),
        ) from error
