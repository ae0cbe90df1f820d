"""Which USB devices a guest really has: asked in the guest where it has a shell, else known from QEMU."""

from collections.abc import Collection

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.usb_devices import as_shown
from pytest_kvmlab.errors import UsbError
from pytest_kvmlab.lab.commands import Commands
from pytest_kvmlab.lab.usb import Dongle
from pytest_kvmlab.lab.waits import until

Seen = list[tuple[str, str]]
"""Vendor:product and serial number of each device."""

# A guest whose kernel drives no USB controller cannot be asked.
_ASK = (
    "ls -d /sys/bus/usb/devices/usb* >/dev/null 2>&1 || exit 1; for d in /sys/bus/usb/devices/*; do "
    'if [ -e "$d/idVendor" ]; then echo "$(cat "$d/idVendor"):$(cat "$d/idProduct") '
    '$(cat "$d/serial" 2>/dev/null)"; fi; done'
)
_EVERY_SECONDS = 0.1


def prove_plugged(guest: Commands, deadline: Deadline) -> None:
    """Wait until a guest sees all USB devices that it should have.

    Args:
        guest: the guest, which answers where it has a shell.
        deadline: when to give up.

    Raises:
        UsbError: it does not see one of them, or one was pulled out of the host meanwhile.
    """
    wanted = guest.machine.usb.wanted
    if not wanted:
        return
    seen = list[Seen]()

    def attempt() -> bool | None:
        answer = _asked(guest, deadline)
        seen[:] = [answer or []]
        return True if _all_there(wanted, answer) else None

    with guest.machine.phase("usb"):
        if not until(attempt, deadline, every=_EVERY_SECONDS):
            raise _not_there(guest, wanted, seen[0])


def _all_there(wanted: Collection[Dongle], seen: Seen | None) -> bool:
    return all(each.is_plugged for each in wanted) and (seen is None or not _missing(wanted, seen))


def _not_there(guest: Commands, wanted: Collection[Dongle], seen: Seen) -> UsbError:
    if out := [each.name for each in wanted if not each.is_plugged]:
        return UsbError(
            f"{guest.name} has lost {', '.join(out)}, which was plugged in when it started",
            "was it pulled out of this machine? of a virtual one, look at device.errors",
        )
    return UsbError(
        f"{guest.name} does not see {', '.join(each.name for each in _missing(wanted, seen))}",
        "does its kernel say why? guest.run('dmesg')",
        looked_at=[" ".join(each).strip() for each in seen],
    )


def prove_gone(guest: Commands, dongle: Dongle, deadline: Deadline) -> None:
    """Wait until a guest does not see a device any more that was pulled out of it.

    Args:
        guest: the guest, which answers where it has a shell.
        dongle: the device.
        deadline: when to give up.

    Raises:
        UsbError: it still sees it.
    """
    same = [each for each in guest.machine.usb.plugged if _looks(each) == _looks(dongle)]

    def attempt() -> bool | None:
        answer = _asked(guest, deadline)
        return True if answer is None or answer.count(_looks(dongle)) <= len(same) else None

    if not until(attempt, deadline, every=_EVERY_SECONDS):
        raise UsbError(f"{guest.name} still sees {dongle.name}, which was pulled out of it")


def _asked(guest: Commands, deadline: Deadline) -> Seen | None:
    """What a guest sees; None if it cannot be asked."""
    if guest.spec.login.channel == "none":
        return None
    answer = guest.ask(_ASK, deadline)
    if not answer.ok:
        return None
    lines = [line.partition(" ") for line in answer.stdout.splitlines()]
    return [(kind, as_shown(serial)) for kind, _, serial in lines]


def _missing(dongles: Collection[Dongle], seen: Seen) -> list[Dongle]:
    left, missing = list(seen), []
    for dongle in dongles:
        if _looks(dongle) in left:
            left.remove(_looks(dongle))
        else:
            missing.append(dongle)
    return missing


def _looks(dongle: Dongle) -> tuple[str, str]:
    return dongle.id, dongle.serial or ""
