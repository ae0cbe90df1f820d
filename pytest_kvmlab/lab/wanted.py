"""Guests that are asked for together, complete and not yet made; and what a template of them depends on."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from pytest_kvmlab.drivers.serial_protocol import server_identity
from pytest_kvmlab.lab.base_image import BaseImage
from pytest_kvmlab.lab.dongles import Wish
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.wiring import Cards
from pytest_kvmlab.plan.guest import Accel
from pytest_kvmlab.spec.network import LabNetwork
from pytest_kvmlab.spec.resolved import GuestSpec

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Asked:
    """A guest with nothing left open.

    Attributes:
        name: its name in its lab.
        spec: what it is.
        image: what it boots from.
        source: the guest as the reader knows it, for messages.
        held: the lock of its image, unless that is held by who asks.
    """

    name: str
    spec: GuestSpec
    image: BaseImage
    source: str
    held: ExitStack


@dataclass(frozen=True)
class Wanted:
    """Guests that are to be up together.

    Attributes:
        guests: the guests.
        networks: the networks of their lab, by name.
        cards: the cards in these networks.
        after: the names of the guests that each is started after.
        source: who asks, for messages.
        timeout: seconds that each guest has to get ready; None: its `boot_timeout`.
    """

    guests: Sequence[Asked]
    networks: Mapping[str, LabNetwork]
    cards: Cards
    after: Mapping[str, Sequence[str]]
    source: str
    timeout: float | None

    @property
    def memory(self) -> int:
        """Bytes of memory that they have together."""
        return sum(guest.spec.memory for guest in self.guests)

    @property
    def dongles(self) -> list[Wish]:
        """The dongles of this machine that they ask for."""
        return [
            Wish(guest.name, keys) for guest in self.guests for keys in guest.spec.usb if not keys.virtual
        ]

    @property
    def without_usb(self) -> "Wanted":
        """The same guests with nothing in their USB ports."""
        return replace(
            self, guests=[replace(guest, spec=replace(guest.spec, usb=())) for guest in self.guests]
        )

    @property
    def kind(self) -> str:
        """What two of these have in common if guests of the one are as good for the other."""
        return repr(
            [(guest.name, guest.image.identity, guest.spec, _password(guest)) for guest in self.guests]
            + [*self.networks.items(), *self.cards.items()]
        )

    @property
    def wired(self) -> bool:
        """Whether networks have to be made for them."""
        return any(network.mode != "user" for network in self.networks.values())

    @property
    def on_a_real_lan(self) -> bool:
        """Whether they are on a bridge of this machine, where others are, too."""
        return any(network.bridge and not network.is_ours for network in self.networks.values())


def why_not_cloned(wanted: Wanted, host: Host) -> str:
    """Why guests have to boot, whatever was asked for; empty if nothing speaks against clones."""
    if not host.own:
        return "its libvirt is not the run's own"
    if wanted.on_a_real_lan:
        return "it is on a real LAN, where no two guests may have one address"
    return next((why for guest in wanted.guests if (why := _why_not(guest.spec))), "")


def _why_not(spec: GuestSpec) -> str:
    reasons = {
        "a microvm does not tell its kernel that it is a clone": spec.machine == "microvm",
        "the state of a TPM belongs to one machine": spec.tpm,
        "nobody can ask it how it is": spec.login.channel == "none",
        "it boots with its USB devices, as it does not say hotplug = true": spec.boots_with_usb,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def template_key(wanted: Wanted, host: Host, accel: Accel) -> str:
    """Name all that the state of frozen guests depends on.

    Args:
        wanted: the guests. Their names count only where others in their networks know them by these.
        host: where they run: its QEMU and libvirt count.
        accel: the accelerator; with KVM, processor and kernel of this machine count, too.

    Returns:
        A hexadecimal digest.
    """
    versions = host.connection.versions()
    depends: dict[str, object] = {
        "guests": [_depends(guest, named=wanted.wired) for guest in wanted.guests],
        "networks": {name: repr(network) for name, network in wanted.networks.items()},
        "cards": {guest: repr(cards) for guest, cards in wanted.cards.items()} if wanted.wired else {},
        "host": host.choice.private if wanted.wired else "",  # else their cards can do less
        "accel": accel,
        "plugin": [version("pytest-kvmlab"), server_identity()],  # it left a server running in the guest
        "libvirt": versions.libvirt,
        "qemu": [versions.qemu, *_stamps([Path("/usr/bin/qemu-system-x86_64")])],
        "machine": _machine() if accel == "kvm" else [],
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()


def _depends(asked: Asked, *, named: bool) -> dict[str, object]:
    spec, boot = asked.spec, asked.image.boot
    files = [spec.kernel, spec.initrd, spec.cdrom, spec.login.key, *(disk.file for disk in spec.disks)]
    own = [boot.kernel, boot.initrd, boot.cdrom, boot.disk and boot.disk.path]
    return {
        "name": asked.name if named or spec.seed else "",
        "image": asked.image.identity,
        "spec": repr(spec),
        "password": _password(asked),
        "files": _stamps([file for file in (*files, *own) if file]),
    }


def _password(asked: Asked) -> str:
    """Tells one password from another; `repr` shows all of them alike."""
    password = asked.spec.login.password
    return hashlib.sha256(password.get_secret_value().encode()).hexdigest() if password else ""


def _stamps(files: Sequence[Path]) -> list[object]:
    """What changes when a file does: it would take seconds to read a disk."""
    return [[str(file), _stamp(file)] for file in files]


def _stamp(file: Path) -> list[int]:
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _machine() -> list[str]:
    """The processor and the kernel, on both of which the state of a virtual CPU depends with KVM."""
    wanted = ("model name", "flags", "microcode", "stepping")
    lines = _CPUINFO.read_text().partition("\n\n")[0].splitlines()
    return [platform.release(), *(line for line in lines if line.startswith(wanted)), str(os.cpu_count())]
