"""From a spec to a guest that is not switched on yet: its files, its plan, its machine, its channels."""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.access import LOGIN_FILES, Access
from pytest_kvmlab.lab.disks import OwnDisk, asked_disk, clean_copy, overlay
from pytest_kvmlab.lab.dongles import Supply
from pytest_kvmlab.lab.frozen import FIRMWARE, Frozen
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.kept import GUEST_DISK
from pytest_kvmlab.lab.machine import SSH_PORT, Machine
from pytest_kvmlab.lab.nic import Nic
from pytest_kvmlab.lab.seed import write_seed
from pytest_kvmlab.lab.wanted import Asked
from pytest_kvmlab.lab.wiring import Wiring
from pytest_kvmlab.plan.domain_xml import domain_xml
from pytest_kvmlab.plan.guest import Accel, Card, GuestPlan, MemoryFile, RunFacts, UefiFiles, plan_guest
from pytest_kvmlab.plan.names import derived_mac
from pytest_kvmlab.spec.guest import NetworkKeys

_OVMF = (
    (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    (Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")),
)
_SEED = "seed.img"

# Counted per process: two assemblies of one process share the run's folder.
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Parts:
    """What a guest is put together from.

    Attributes:
        access: its keys.
        disks: what it writes to: the image's disk first, if it has one.
        seed: what cloud-init in it reads, if it is asked for.
        uefi: its firmware, if this machine has one.
        memory: the file that is its memory, if it is to be frozen.
        frozen: the moment it starts from, if it is a clone.
    """

    access: Access
    disks: Sequence[OwnDisk]
    seed: Path | None
    uefi: UefiFiles | None
    memory: MemoryFile | None = None
    frozen: Frozen | None = None


@dataclass(frozen=True)
class Assembly:
    """Puts guests of one process of a run together.

    Attributes:
        host: where they run.
        images: keeps the disks that they save.
        accel: the accelerator that was proved.
        timeout_scale: what every timeout is multiplied by.
        journal: where events go.
        worker: this process's name within the run.
        keep: guests are not tied to this process, so that they may stay after the run.
    """

    host: Host
    images: Images
    accel: Accel
    timeout_scale: float
    journal: Journal
    worker: str
    keep: bool

    def new_folder(self, name: str) -> Path:
        """A folder for one guest, whose name no other guest of the run has."""
        folder = self.host.folder.guests / f"{name[:16]}-{self.worker}-{next(_NUMBERS)}"
        folder.mkdir()
        return folder

    def guest(self, asked: Asked, wiring: Wiring, folder: Path, parts: Parts, dongles: Supply) -> Guest:
        """Put a guest together; its disks are made.

        Args:
            asked: what it is.
            wiring: what it is plugged into.
            folder: its own, for sockets and logs.
            parts: the rest.
            dongles: those of this host that it has and may have.

        Raises:
            ConfigError: spec and image do not fit together.
            ImageError: a disk cannot be made.
        """
        name, spec, image, access = asked.name, asked.spec, asked.image, parts.access
        plan = self._plan(asked, wiring, folder, parts)
        (folder / "domain.xml").write_text(domain_xml(plan))
        renew = partial(_renew, parts.disks, plan, self.host.folder.path)
        renew()
        # Names of guests come again in other tests: the journal of a guest has the events of no other.
        journal = Journal(listeners=[self.journal.add])
        autodestroy = self.host.autodestroy and not self.keep
        lines = [wiring.line(name, index) for index in range(len(plan.nics))]
        machine = Machine(name, self.host, plan, renew, journal, autodestroy, lines, parts.frozen)
        ssh = SshChannel(
            name, partial(machine.dial_greeter, SSH_PORT), access.login, host_key=access.host_key
        )
        return Guest(
            machine,
            spec,
            ssh,
            image_identity=image.identity,
            kernel=str(spec.kernel or image.kernel_version or ""),
            timeout_scale=self.timeout_scale,
            save=partial(self.images.save, parts.disks[0].file.path) if image.boot.disk else None,
            dongles=dongles,
            kernels=self.images.kernel_packages,
            nics=[Nic(nic.mac, machine, line) for nic, line in zip(plan.nics, lines, strict=True)],
        )

    def _plan(self, asked: Asked, wiring: Wiring, folder: Path, parts: Parts) -> GuestPlan:
        spec, boot, files = asked.spec, asked.image.boot, [disk.file for disk in parts.disks]
        disk = files.pop(0) if boot.disk else None
        facts = RunFacts(
            run_id=self.host.folder.run,
            owner=self.worker,
            guest=folder.name,
            accel=self.accel,
            folder=folder,
            disks=tuple(files),
            cards=tuple(
                map(_known, spec.networks, wiring.cards(asked.name, spec.networks), itertools.count())
            ),
            seed=parts.seed,
            fw_cfg=parts.access.files,
            uefi=parts.uefi,
            qemu_user=self.host.qemu_user,
            keeps_tpm=self.host.own,
        )
        return replace(plan_guest(spec, replace(boot, disk=disk), facts), memory_file=parts.memory)


def _known(asked: NetworkKeys, card: Card, index: int) -> Card:
    """A card whose MAC address is the same in every clone; in user mode nobody else is there to meet it."""
    return replace(card, mac=card.mac or asked.mac or derived_mac("user", "guest", index))


def own_parts(asked: Asked, folder: Path) -> Parts:
    """The parts of a guest that boots.

    Args:
        asked: what it is.
        folder: where they are put.
    """
    access = Access.of(asked.spec, folder)
    seed = folder / _SEED if asked.spec.seed else None
    if seed:
        write_seed(seed, access.seed(folder.name, asked.name))
    return Parts(access, _disks(asked, folder), seed, _uefi_files())


def _disks(asked: Asked, folder: Path) -> list[OwnDisk]:
    image = asked.image.boot.disk
    boot = [overlay(image, folder / GUEST_DISK)] if image else []
    more = enumerate(asked.spec.disks, 1)
    return boot + [asked_disk(disk, folder / f"disk{number}.qcow2") for number, disk in more]


def cloned_parts(asked: Asked, frozen: Frozen, folder: Path) -> Parts:
    """The parts of a clone: the keys of the frozen guest, and disks that stand on its disks.

    Args:
        asked: what both are.
        frozen: that guest.
        folder: where they are put.
    """
    disks = [
        clean_copy(disk.file, frozen.blank(number), folder / disk.file.path.name)
        for number, disk in enumerate(_disks(asked, frozen.folder))
    ]
    seed = frozen.folder / _SEED if asked.spec.seed else None
    access = Access.of(asked.spec, _keys(asked, frozen, folder))
    return Parts(access, disks, seed, _uefi_of(frozen), frozen=frozen)


def _keys(asked: Asked, frozen: Frozen, folder: Path) -> Path:
    """Where the keys of a clone are: with its template, unless it gets a host key of its own."""
    if "host-key" not in asked.spec.fresh:
        return frozen.folder
    for name in LOGIN_FILES:
        shutil.copy(frozen.folder / name, folder)
    return folder


def _uefi_files() -> UefiFiles | None:
    return next((UefiFiles(code, store) for code, store in _OVMF if code.exists() and store.exists()), None)


def _uefi_of(frozen: Frozen) -> UefiFiles | None:
    """The firmware of a clone begins with the variables that the frozen guest's had."""
    files, own = _uefi_files(), frozen.folder / FIRMWARE
    return replace(files, vars_template=own) if files and own.exists() else files


def _renew(disks: Sequence[OwnDisk], plan: GuestPlan, run: Path) -> None:
    """Make all that a guest writes to as new; libvirt makes firmware variables and a TPM's state anew."""
    for disk in disks:
        disk.renew()
    if plan.uefi:
        plan.uefi.vars.unlink(missing_ok=True)
    if plan.tpm:
        for state in run.glob(f"**/swtpm/{plan.uuid}"):
            shutil.rmtree(state)
