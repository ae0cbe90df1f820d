"""What a guest's shell is asked about its kernel at the end of a test, and how the answer is read."""

import re
import shlex
from collections import defaultdict
from dataclasses import dataclass

from pytest_kvmlab.kernel_log.finding import Finding
from pytest_kvmlab.kernel_log.patterns import TRIGGERS
from pytest_kvmlab.kernel_log.scanner import scan

_LONGEST_LOG = 2**20
_MOST_ENTRIES = 500
_LONGEST_NAME = 64
_MARK = "--kvmlab-{}--"

# For POSIX shells, busybox's included; what a guest does not have stays empty.
_COMMANDS = {
    "release": "uname -r",
    "taint": "cat /proc/sys/kernel/tainted",
    "modules": "cut -d' ' -f1 /proc/modules",
    "devices": "cd /sys/bus && grep -H = pci/devices/*/uevent usb/devices/*/uevent virtio/devices/*/uevent",
    # A long log is sent only if a word is in it that a complaint would have.
    "log": f"dmesg | grep -qF {' '.join(f'-e {shlex.quote(word)}' for word in TRIGGERS)}"
    f" && dmesg | tail -c {_LONGEST_LOG}",
}
_SCRIPT = "; ".join(f"echo; echo {_MARK.format(name)}; {command}" for name, command in _COMMANDS.items())
QUESTION = f"sh -c {shlex.quote(_SCRIPT)} 2>/dev/null"
_HEADING = re.compile(rf"^{_MARK.format('([a-z]+)')}\r?$", re.MULTILINE)
_UEVENT = re.compile(r"^(\w+)/devices/([^/]+)/uevent:(\w+)=(.*)$", re.MULTILINE)
# What says of a device what it is, on each bus.
_IDENTITY = {"pci": "PCI_ID", "usb": "PRODUCT", "virtio": "MODALIAS"}
# Vendor and product; the release that follows is the kernel's own version for its root hubs.
_USB_PRODUCT = re.compile(r"([0-9a-f]{1,4})/([0-9a-f]{1,4})/.*")


@dataclass(frozen=True, order=True)
class Device:
    """A device that a kernel sees.

    Attributes:
        bus: `pci`, `usb` or `virtio`.
        id: what it is, as its bus says it: `1af4:1041`.
        driver: the driver that has it; empty if none has.
    """

    bus: str
    id: str
    driver: str


@dataclass(frozen=True)
class Answer:
    """What a running kernel says about itself.

    Attributes:
        release: its version, as `uname -r` prints it.
        tainted: the flags of `/proc/sys/kernel/tainted` as a number.
        modules: the names of the modules that are loaded, sorted.
        devices: what is plugged, sorted.
        findings: what its log complains about, since it started.
    """

    release: str
    tainted: int
    modules: tuple[str, ...]
    devices: tuple[Device, ...]
    findings: tuple[Finding, ...]


def read_answer(output: str) -> Answer:
    """Read what a guest's shell printed when it was asked `QUESTION`.

    Args:
        output: anything: it comes from a guest.
    """
    pieces = _HEADING.split(output)
    parts = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    tainted = parts.get("taint", "").strip()
    return Answer(
        release=_name(parts.get("release", "").strip()),
        tainted=int(tainted) if re.fullmatch(r"[0-9]{1,9}", tainted) else 0,
        modules=tuple(sorted(map(_name, parts.get("modules", "").split()[:_MOST_ENTRIES]))),
        devices=tuple(sorted(_devices(parts.get("devices", "")))),
        findings=tuple(scan([parts.get("log", "").encode()])),
    )


def _devices(uevents: str) -> list[Device]:
    """Each device has a file of `KEY=value` lines, which grep prints behind the file's name."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for bus, place, key, value in _UEVENT.findall(uevents):
        if len(found) < _MOST_ENTRIES or (bus, place) in found:
            found[bus, place][key] = _name(value.strip())
    return [
        Device(bus, _identity(keys[_IDENTITY[bus]].lower()), keys.get("DRIVER", ""))
        for (bus, _), keys in found.items()
        if _IDENTITY.get(bus) in keys
    ]


def _identity(written: str) -> str:
    return _USB_PRODUCT.sub(lambda found: f"{found[1]:0>4}:{found[2]:0>4}", written)


def _name(text: str) -> str:
    return "".join(letter for letter in text[:_LONGEST_NAME] if letter.isprintable())
