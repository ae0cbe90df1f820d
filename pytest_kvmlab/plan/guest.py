"""What was decided about one guest: everything that its XML says, and nothing left to look up."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Literal
from uuid import UUID

from pytest_kvmlab.errors import ConfigError, HostError
from pytest_kvmlab.kernel_log.console_level import with_warnings
from pytest_kvmlab.plan.names import derived_mac, domain_name, domain_uuid
from pytest_kvmlab.spec.guest import BootDevice, Clock, DiskBus, DiskFormat, Machine, NicModel, Sound, Video
from pytest_kvmlab.spec.resolved import GuestSpec

Accel = Literal["kvm", "tcg"]

# unix(7): sun_path has 108 bytes, the last one is zero.
_LONGEST_SOCKET_PATH = 107

_UNQUOTED = frozenset(",&<>'\"")
_SERIES: Mapping[DiskBus, str] = {"virtio": "vd", "sata": "sd", "ide": "hd"}


@dataclass(frozen=True)
class DiskFile:
    """A disk in a file or on a block `device`, and what it stands on, down to the one that stands alone."""

    path: Path
    format: DiskFormat
    backing: "DiskFile | None" = None
    device: bool = False


@dataclass(frozen=True)
class BootSource:
    """What an image gives a guest to boot from.

    Args:
        disk: an overlay that belongs to this guest alone; `None` for an image without a disk.
        kernel: for direct boot; `None` lets the firmware boot the disk.
        initrd: belongs to `kernel`.
        cmdline: belongs to `kernel`.
        cdrom: a disc, for a guest that has none of its own in the drive.
    """

    disk: DiskFile | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str | None = None
    cdrom: Path | None = None


@dataclass(frozen=True)
class UefiFiles:
    """The firmware's code, and the empty variable store that every guest gets a copy of."""

    code: Path
    vars_template: Path


@dataclass(frozen=True)
class UserWire:
    """User-mode NAT inside QEMU, in which a guest is alone."""


@dataclass(frozen=True)
class TapWire:
    """A TAP device that was made before, plugged in already."""

    device: str


@dataclass(frozen=True)
class StreamWire:
    """A TCP port on the loopback address, where frames are taken and given."""

    port: int


Wire = UserWire | TapWire | StreamWire


@dataclass(frozen=True)
class Card:
    """Where a network card is plugged in, and the MAC address that it has there."""

    wire: Wire = UserWire()
    mac: str | None = None


@dataclass(frozen=True)
class RunFacts:
    """What the run knows and the spec does not say.

    Args:
        run_id: eight hexadecimal digits.
        owner: who takes the guest down: process id and start time, for the reaper.
        guest: the guest's name in the lab.
        accel: the accelerator that was proved to work.
        folder: the guest's own folder: sockets, logs, variables.
        disks: one file for each of the spec's `disks`, in their order.
        cards: one for each of the spec's `networks`, in their order; none leaves all of them in user mode.
        seed: a file system for cloud-init, if the spec asks for a `seed`.
        fw_cfg: names under `opt/` (QEMU docs/specs/fw_cfg.rst) and the files that the guest reads there.
        uefi: the firmware of this machine, if it has one.
        qemu_user: whom QEMU has to run as, `+UID:+GID`, where its libvirt would choose somebody else.
        keeps_tpm: libvirt shall keep a TPM's state while the power is off; one that is not the run's own
            would keep it for ever.
    """

    run_id: str
    owner: str
    guest: str
    accel: Accel
    folder: Path
    disks: tuple[DiskFile, ...] = ()
    cards: tuple[Card, ...] = ()
    seed: Path | None = None
    fw_cfg: Mapping[str, Path] = field(default_factory=dict)
    uefi: UefiFiles | None = None
    qemu_user: str | None = None
    keeps_tpm: bool = True


@dataclass(frozen=True)
class DiskPlan:
    """A disk as the guest sees it; `boot_order` counts from 1."""

    file: DiskFile
    bus: DiskBus
    target: str
    boot_order: int | None
    read_only: bool = False


@dataclass(frozen=True)
class CdromPlan:
    """A CD-ROM drive with a disc in it; `boot_order` counts from 1."""

    file: Path
    bus: DiskBus
    target: str
    boot_order: int | None


@dataclass(frozen=True)
class NicPlan:
    """A network card; QEMU's name of its back end is `host` + `alias`."""

    wire: Wire
    mac: str
    model: NicModel
    alias: str
    boot_order: int | None

    @property
    def netdev(self) -> str:
        """What QEMU's monitor calls the back end, for `hostfwd_add`."""
        return f"host{self.alias}"


@dataclass(frozen=True)
class KernelPlan:
    """A kernel that QEMU loads by itself."""

    kernel: Path
    initrd: Path | None
    cmdline: str | None


@dataclass(frozen=True)
class UefiPlan:
    """The firmware's code, the template of its variables, and this guest's copy, which libvirt makes."""

    code: Path
    vars_template: Path
    vars: Path


@dataclass(frozen=True)
class MemoryFile:
    """A file that is a guest's memory (QEMU docs/system/vm-templating.rst).

    Args:
        path: the file, as large as the memory.
        writes: what the guest writes is in the file; else it stays the guest's own, page by page.
    """

    path: Path
    writes: bool


@dataclass(frozen=True)
class CpuPlan:
    """A libvirt CPU mode; `model` only with `custom`."""

    mode: Literal["host-passthrough", "maximum", "custom"]
    model: str | None = None


@dataclass(frozen=True)
class GuestPlan:
    """Everything that the XML of a guest says.

    `name`, `uuid` and MAC addresses follow from run and guest; QEMU makes the sockets; `memory` is in bytes.
    A guest that is `incoming` does not boot: it waits for the state of another one.
    """

    name: str
    uuid: UUID
    run_id: str
    guest: str
    owner: str
    accel: Accel
    machine: Machine
    cpu: CpuPlan
    vcpus: int
    memory: int
    boot: KernelPlan | None
    uefi: UefiPlan | None
    bios_serial: bool
    disks: tuple[DiskPlan, ...]
    cdrom: CdromPlan | None
    nics: tuple[NicPlan, ...]
    serial_socket: Path
    serial_log: Path
    agent_socket: Path
    vnc_socket: Path | None
    fw_cfg: tuple[tuple[str, Path], ...]
    video: Video
    sound: Sound | None
    clock: Clock
    rng: bool
    tpm: bool
    keeps_tpm: bool
    qemu_user: str | None
    memory_file: MemoryFile | None = None
    incoming: bool = False


def plan_guest(spec: GuestSpec, source: BootSource, run: RunFacts) -> GuestPlan:
    """Decide everything about a guest.

    Args:
        spec: what is asked for.
        source: what its image gives it to boot from.
        run: what the run knows.

    Returns:
        The plan, ready to be printed as XML.

    Raises:
        ConfigError: the image and the spec do not fit together, or a socket's path would be too long.
        HostError: UEFI is asked for and this machine has no such firmware.
    """
    name, kernel = domain_name(run.run_id, run.guest), _kernel(spec, source, run.accel)
    _refuse_tpm_below_initrd(spec, kernel)
    return GuestPlan(
        name=name,
        uuid=domain_uuid(name),
        run_id=run.run_id,
        guest=run.guest,
        owner=run.owner,
        accel=run.accel,
        machine=_machine(spec, run),
        cpu=_cpu(spec.cpu, run.accel),
        vcpus=spec.vcpus,
        memory=spec.memory,
        boot=kernel,
        uefi=_uefi(run) if spec.firmware == "uefi" else None,
        bios_serial=spec.bios_serial,
        disks=_disks(spec, source, run),
        cdrom=_cdrom(spec, source),
        nics=_nics(spec, run),
        serial_socket=_socket(run.folder / "serial.sock"),
        serial_log=run.folder / "serial.log",
        agent_socket=_socket(run.folder / "agent.sock"),
        vnc_socket=None if spec.video == "none" else _socket(run.folder / "vnc.sock"),
        fw_cfg=_fw_cfg(run),
        video=spec.video,
        sound=spec.sound,
        clock=spec.clock,
        rng=spec.rng,
        tpm=spec.tpm,
        keeps_tpm=run.keeps_tpm,
        qemu_user=run.qemu_user,
    )


def _machine(spec: GuestSpec, run: RunFacts) -> Machine:
    """Refuse what boots only now and then.

    A microvm has no timer to measure the TSC by. KVM tells the guest how fast it runs, emulation does not,
    and a kernel that cannot find out waits for ever ("tsc: Unable to calibrate against PIT").
    """
    if spec.machine == "microvm" and run.accel == "tcg":
        raise ConfigError(
            "machine 'microvm' needs KVM, but this guest is emulated",
            'use machine = "q35": an emulated microvm often hangs in its kernel\'s first instructions',
        )
    return spec.machine


def _cpu(asked: str | None, accel: Accel) -> CpuPlan:
    if asked == "host" and accel == "tcg":
        raise ConfigError(
            "cpu 'host' needs KVM, but this guest is emulated", "leave cpu out: it is the host's with KVM"
        )
    if asked == "max" or (asked is None and accel == "tcg"):
        return CpuPlan("maximum")
    return CpuPlan("host-passthrough") if asked in (None, "host") else CpuPlan("custom", asked)


def _kernel(spec: GuestSpec, source: BootSource, accel: Accel) -> KernelPlan | None:
    """The image's kernel is left alone where the firmware is told what to boot.

    A kernel of the guest's own does not go with the image's initrd, whose modules are another kernel's.
    """
    kernel = spec.kernel or (None if spec.boot else source.kernel)
    if kernel:
        initrd = spec.initrd or (None if spec.kernel else source.initrd)
        return KernelPlan(kernel, initrd, spec.cmdline or _cmdline(source, accel))
    if spec.machine == "microvm":
        raise ConfigError(
            f"machine 'microvm' boots a kernel only, and image '{spec.image}' has none",
            'give it one (kernel = "vmlinuz"), or use machine = "q35"',
        )
    if spec.initrd or spec.cmdline:
        raise ConfigError(
            f"initrd or cmdline without a kernel: image '{spec.image}' boots what its disk says",
            'give it a kernel too: kernel = "vmlinuz"',
        )
    return None


def _cmdline(source: BootSource, accel: Accel) -> str | None:
    """What an image tells its kernel, and what the kernel has to know about where it runs.

    A kernel counts the ticks of its timer; where a busy machine emulates them, it may count too few and panic
    ("IO-APIC + timer doesn't work!"). With KVM it does not count (arch/x86/kernel/kvm.c, no_timer_check).
    """
    told = with_warnings(source.cmdline)
    return f"{told} no_timer_check" if told and accel == "tcg" else told


def _refuse_tpm_below_initrd(spec: GuestSpec, kernel: KernelPlan | None) -> None:
    """Refuse what QEMU puts in one place: above an initrd it leaves too little room for a TPM's ACPI tables.

    The kernel says "Invalid table length 0x0 in RSDT/XSDT" and goes on without ACPI, TPM and network.
    """
    if spec.tpm and spec.firmware == "bios" and kernel and kernel.initrd:
        raise ConfigError(
            f"a TPM does not go with a kernel and an initrd that QEMU loads (image '{spec.image}')",
            "use an image that boots from its disk, or a kernel without an initrd",
        )


def _uefi(run: RunFacts) -> UefiPlan:
    if run.uefi is None:
        raise HostError(
            "firmware 'uefi' is asked for, but this machine has none", "apt install ovmf", check="uefi"
        )
    return UefiPlan(run.uefi.code, run.uefi.vars_template, run.folder / "uefi-vars.fd")


def _disks(spec: GuestSpec, source: BootSource, run: RunFacts) -> tuple[DiskPlan, ...]:
    """The image's disk comes first; the firmware boots from the first disk only.

    The seed comes last, so that no other disk has another name because of it.
    """
    files = [*([source.disk] if source.disk else []), *run.disks]
    buses = [disk.bus for disk in spec.disks]
    if source.disk:
        buses.insert(0, "virtio")
    *targets, seed = _targets([*buses, "virtio"])
    disks = tuple(
        DiskPlan(file, bus, target, _boot_order(spec, "disk") if index == 0 else None)
        for index, (file, bus, target) in enumerate(zip(files, buses, targets, strict=True))
    )
    if run.seed is None:
        return disks
    return (*disks, DiskPlan(DiskFile(run.seed, "raw"), "virtio", seed, None, read_only=True))


def _targets(buses: Sequence[DiskBus]) -> list[str]:
    """Linux's names of the disks: vda, vdb, sda, in each series one after the other."""
    return [f"{_SERIES[bus]}{ascii_lowercase[buses[:index].count(bus)]}" for index, bus in enumerate(buses)]


def _cdrom(spec: GuestSpec, source: BootSource) -> CdromPlan | None:
    file = spec.cdrom or source.cdrom
    if file is None:
        _refuse_to_boot_no_disc(spec)
        return None
    if spec.machine == "microvm":
        raise ConfigError(
            f"machine 'microvm' has no CD-ROM drive for the disc of image '{spec.image}'",
            'use machine = "q35"',
        )
    bus: DiskBus = "ide" if spec.machine == "pc" else "sata"
    target = _targets([*(disk.bus for disk in spec.disks), bus])[-1]
    return CdromPlan(file, bus, target, _boot_order(spec, "cdrom"))


def _refuse_to_boot_no_disc(spec: GuestSpec) -> None:
    if spec.boot and "cdrom" in spec.boot:
        raise ConfigError(
            f"boot names the CD-ROM, but there is none in image '{spec.image}'",
            'give the guest one: cdrom = "installer.iso"',
        )


def _nics(spec: GuestSpec, run: RunFacts) -> tuple[NicPlan, ...]:
    """An alias of our own, which libvirt keeps if it starts with `ua-` (formatdomain, "User aliases")."""
    cards = run.cards or (Card(),) * len(spec.networks)
    return tuple(
        NicPlan(
            wire=card.wire,
            mac=card.mac or nic.mac or derived_mac(run.run_id, run.guest, index),
            model=nic.model,
            alias=f"ua-nic{index}",
            boot_order=_boot_order(spec, "network") if index == 0 else None,
        )
        for index, (nic, card) in enumerate(zip(spec.networks, cards, strict=True))
    )


def _boot_order(spec: GuestSpec, device: BootDevice) -> int | None:
    """Counted from 1; where nothing is said, the disk, and behind it the disc in the drive."""
    order = spec.boot or ("disk", "cdrom")
    return order.index(device) + 1 if device in order else None


def _fw_cfg(run: RunFacts) -> tuple[tuple[str, Path], ...]:
    """Refuse what libvirt 9.0 does not quote: a comma in this path would begin another option of QEMU."""
    for path in run.fw_cfg.values():
        if _UNQUOTED & set(str(path)):
            raise ConfigError(
                "the path of a file for the guest has one of , & < > ' \"",
                "point KVMLAB_RUNS at a folder without them",
                looked_at=[path],
            )
    return tuple(sorted(run.fw_cfg.items()))


def _socket(path: Path) -> Path:
    length = len(os.fsencode(path))
    if length > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"the path of a socket has {length} bytes, {_LONGEST_SOCKET_PATH} are possible",
            "point KVMLAB_RUNS at a folder with a shorter path",
            looked_at=[path],
        )
    return path
