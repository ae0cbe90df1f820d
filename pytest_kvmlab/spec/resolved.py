"""A guest with nothing left open: every key has its value, and the values fit together."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.access import Channel, GeneratedHostKey, HostKey, LoginKeys
from pytest_kvmlab.spec.expectation import Expectation
from pytest_kvmlab.spec.guest import (
    BootDevice,
    Clock,
    DiskKeys,
    Firmware,
    GuestKeys,
    Identity,
    Machine,
    NetworkKeys,
    Sound,
    Video,
)
from pytest_kvmlab.spec.kernel import ITS_OWN
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.quantity import MIB
from pytest_kvmlab.spec.readiness import CommandReady, Readiness, UnitReady
from pytest_kvmlab.spec.usb import UsbKeys

# docs/system/i386/microvm.rst of QEMU: "Up to eight virtio-mmio devices".
_MICROVM_SLOTS = 8
# Two channels with two drives each.
_IDE_DRIVES = 4
# What useradd(8) of every distribution takes; it gets the name from cloud-init as it is written.
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Login:
    """How to get in: a user with a password, a key file, or (neither) the run's own key, over one channel."""

    user: str
    password: SecretStr | None
    key: Path | None
    channel: Channel


@dataclass(frozen=True)
class GuestSpec:
    """What one guest is, all defaults filled in; memory in bytes, `boot_timeout` in seconds.

    `kernel`, `initrd` and `cmdline` of `None` leave it to the image, `cpu` of `None` to the accelerator; an
    empty `boot` leaves it to the image's kernel, if it has one.
    """

    image: str
    vcpus: int
    memory: int
    machine: Machine
    cpu: str | None
    firmware: Firmware
    bios_serial: bool
    disks: tuple[DiskKeys, ...]
    cdrom: Path | None
    boot: tuple[BootDevice, ...]
    networks: tuple[NetworkKeys, ...]
    usb: tuple[UsbKeys, ...]
    hotplug: bool
    sound: Sound | None
    clock: Clock
    rng: bool
    tpm: bool
    video: Video
    kernel: Path | None
    initrd: Path | None
    cmdline: str | None
    login: Login
    host_key: HostKey
    seed: bool
    ready: Readiness | None
    boot_timeout: int
    fresh: tuple[Identity, ...]
    expect_kernel: tuple[Expectation, ...]

    @property
    def boots_with_usb(self) -> bool:
        """Whether what it does at boot may depend on what is in its USB ports then."""
        return not self.hotplug and any(device.plugged for device in self.usb)


def resolve_guest(keys: GuestKeys, *, source: str, networks: Collection[str] = ()) -> GuestSpec:
    """Fill in the defaults and check that the whole can work.

    Args:
        keys: all layers merged.
        source: the guest as the reader knows it, for messages: `guest 'web' of wiki.lab.toml`.
        networks: the networks of its lab that are made for it.

    Returns:
        The guest to plan.

    Raises:
        ConfigError: no image is named, a network card is in none of the networks, or two keys exclude each
            other.
    """
    if keys.image is None:
        raise ConfigError(f"{source}: no image is named", 'give it one: image = "micro"')
    _refuse_named_kernel(keys.kernel, source)
    spec = _with_defaults(keys, keys.image)
    _refuse_other_networks(spec, networks, source)
    for rule in _RULES:
        if rule.broken(spec):
            raise ConfigError(f"{source}: {rule.message}", rule.hint)
    return spec


def _refuse_named_kernel(kernel: str | Path | None, source: str) -> None:
    """A mark's or a lab file's is a part of the image's name by now; an image cannot say to be another."""
    if isinstance(kernel, str) and kernel != ITS_OWN:
        raise ConfigError(
            f"{source}: its image says kernel = {kernel!r}, which only a mark or a lab file can say",
            "build the image of that kernel's package, or name the path of a kernel",
        )


def _refuse_other_networks(spec: GuestSpec, networks: Collection[str], source: str) -> None:
    for index, card in enumerate(spec.networks):
        if card.name is not None and card.name not in networks:
            raise ConfigError(
                f"{source}: networks[{index}].name: no network '{card.name}' is made for this guest"
                f"{nearest(card.name, networks)}",
                'use networks = [{ mode = "user" }]',
            )


def _with_defaults(keys: GuestKeys, image: str) -> GuestSpec:
    machine = keys.machine or "q35"
    networks = (NetworkKeys(),) if keys.networks is None else keys.networks
    return GuestSpec(
        image=image,
        vcpus=keys.vcpus or 1,
        memory=keys.memory or 256 * MIB,
        machine=machine,
        cpu=keys.cpu,
        firmware=keys.firmware or "bios",
        bios_serial=bool(keys.bios_serial),
        disks=keys.disks or (),
        cdrom=keys.cdrom,
        boot=keys.boot or (),
        networks=networks,
        usb=keys.usb or (),
        hotplug=bool(keys.hotplug),
        sound=keys.sound,
        clock=keys.clock or "utc",
        rng=keys.rng is not False,
        tpm=bool(keys.tpm),
        video=keys.video or _default_video(machine),
        kernel=keys.kernel if isinstance(keys.kernel, Path) else None,
        initrd=keys.initrd,
        cmdline=keys.cmdline,
        login=_login(keys.login or LoginKeys(), networked=bool(networks)),
        host_key=keys.host_key or GeneratedHostKey(),
        seed=bool(keys.seed),
        ready=keys.ready,
        boot_timeout=keys.boot_timeout or 60,
        fresh=keys.fresh or (),
        expect_kernel=keys.expect_kernel or (),
    )


def _default_video(machine: Machine) -> Video:
    """A VGA card is what every guest can drive without a driver, so a failed test always has a screenshot."""
    return "none" if machine == "microvm" else "vga"


def _login(keys: LoginKeys, *, networked: bool) -> Login:
    channel = keys.channel or ("ssh" if networked else "serial")
    return Login(user=keys.user, password=keys.password, key=keys.key, channel=channel)


@dataclass(frozen=True)
class _Rule:
    """Two keys that exclude each other."""

    broken: Callable[[GuestSpec], bool]
    message: str
    hint: str


def _not_on_microvm(broken: Callable[[GuestSpec], bool], what: str) -> _Rule:
    return _Rule(
        lambda spec: spec.machine == "microvm" and broken(spec),
        f"machine 'microvm' has {what}",
        'use machine = "q35", or leave that key out',
    )


def _virtio_devices(spec: GuestSpec) -> int:
    """The agent's channel and the image's disk are always there."""
    return 2 + len(spec.networks) + len(spec.disks) + spec.rng + spec.seed


def _ide_drives(spec: GuestSpec) -> int:
    """The CD-ROM drive of a `pc` is on the IDE bus too."""
    return sum(disk.bus == "ide" for disk in spec.disks) + (spec.machine == "pc" and spec.cdrom is not None)


def _asks_a_shell(ready: Readiness | None) -> bool:
    return isinstance(ready, UnitReady | CommandReady)


_RULES = (
    _not_on_microvm(lambda spec: spec.cdrom is not None, "no CD-ROM drive"),
    _not_on_microvm(lambda spec: spec.firmware == "uefi", "no UEFI firmware"),
    _not_on_microvm(lambda spec: spec.bios_serial, "no BIOS that talks on the serial line"),
    _not_on_microvm(
        lambda spec: any(nic.model != "virtio" for nic in spec.networks), "only virtio network cards"
    ),
    _not_on_microvm(lambda spec: any(disk.bus != "virtio" for disk in spec.disks), "only virtio disks"),
    _not_on_microvm(lambda spec: bool(spec.usb), "no USB controller"),
    _not_on_microvm(lambda spec: spec.sound is not None, "no sound card"),
    _not_on_microvm(lambda spec: spec.tpm, "no TPM"),
    _not_on_microvm(lambda spec: spec.video != "none", "no display"),
    _not_on_microvm(lambda spec: "network" in spec.boot, "no network boot"),
    _not_on_microvm(
        lambda spec: _virtio_devices(spec) > _MICROVM_SLOTS,
        f"places for {_MICROVM_SLOTS} virtio devices only",
    ),
    _Rule(
        lambda spec: spec.machine != "pc" and any(disk.bus == "ide" for disk in spec.disks),
        "a disk on the IDE bus needs machine 'pc'",
        'use bus = "sata", or machine = "pc"',
    ),
    _Rule(
        lambda spec: _ide_drives(spec) > _IDE_DRIVES,
        f"the IDE bus has places for {_IDE_DRIVES} drives only",
        'use bus = "sata" or bus = "virtio"',
    ),
    _Rule(
        lambda spec: "network" in spec.boot and not spec.networks,
        "boot names the network, but the guest has no network card",
        "leave out networks = []",
    ),
    _Rule(
        lambda spec: spec.bios_serial and spec.firmware == "uefi",
        "bios_serial needs firmware 'bios'",
        "leave bios_serial out: UEFI talks on the serial line anyway",
    ),
    _Rule(
        lambda spec: spec.seed and not _ACCOUNT.fullmatch(spec.login.user),
        "the seed has cloud-init make the login's user, whose name no account can have",
        "use small letters, digits, '_' and '-'",
    ),
    _Rule(
        lambda spec: spec.login.channel == "none" and _asks_a_shell(spec.ready),
        'ready is a command or a unit, but login says channel = "none", so there is no shell to ask',
        'use ready = "console:PATTERN" or "port:NUMBER", or give it a channel',
    ),
    _Rule(
        lambda spec: spec.login.channel == "ssh" and not spec.networks,
        "login is over SSH, but the guest has no network card",
        'use login = { channel = "serial" }, or leave out networks = []',
    ),
)
