"""From what is asked for to a guest that is ready, and back to nothing."""

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pytest_kvmlab.checks import TPM
from pytest_kvmlab.drivers.ssh import LEARN, SshChannel
from pytest_kvmlab.drivers.ssh_keys import KeyPair, generate_key_pair
from pytest_kvmlab.drivers.ssh_login import Login
from pytest_kvmlab.errors import ConfigError, HostError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.disks import OwnDisk, asked_disk, overlay
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.images import BaseImage, Images
from pytest_kvmlab.lab.kept import leave
from pytest_kvmlab.lab.machine import SSH_PORT, Machine
from pytest_kvmlab.plan.domain_xml import domain_xml
from pytest_kvmlab.plan.guest import Accel, RunFacts, UefiFiles, UefiPlan, plan_guest
from pytest_kvmlab.spec.access import GeneratedHostKey, LearnedHostKey, PinnedHostKey
from pytest_kvmlab.spec.guest import GuestKeys, merge
from pytest_kvmlab.spec.resolved import GuestSpec, resolve_guest

_BOOT_SECONDS = 60.0
_OVMF = (
    (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    (Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")),
)

# Counted per process, not per launcher: two launchers of one process share the run's folder.
_NUMBERS = itertools.count(1)

Witness = Callable[[Guest, BaseException | None], bool]
"""Told of every guest that was switched on, while it can be looked at, and what went wrong, if anything.
Says whether the guest is to stay after the run."""


@dataclass
class Launcher:
    """Starts the guests of one process of a run.

    Attributes:
        host: where they run.
        images: what they boot from.
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
    keep: bool = False
    _left: list[ExitStack] = field(default_factory=list)

    @contextmanager
    def guest(
        self, name: str, keys: GuestKeys, *, source: str, witness: Witness, timeout: float = _BOOT_SECONDS
    ) -> Iterator[Guest]:
        """Run a guest as long as the context lasts.

        Args:
            name: the guest's name in its lab.
            keys: what the mark and the lab file say, merged.
            source: the guest as the reader knows it, for messages.
            witness: told before the guest ends, and also if it never got ready.
            timeout: seconds until the guest must be ready.

        Yields:
            The guest, ready.

        Raises:
            ConfigError: the keys do not fit together.
            ImageError: the image cannot be used.
            HostError: this machine lacks something.
            GuestError: the guest does not get ready; the message says how far it came.
        """
        if keys.image is None:
            raise ConfigError(f"{source}: no image is named", 'name one: kvm(image="micro")')
        with ExitStack() as undo:
            image = undo.enter_context(self.images.use(keys.image))
            spec = resolve_guest(merge(keys, image.keys), source=source)
            _require(spec)
            folder = self._new_folder(name)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            guest = self._make(name, spec, image, folder)
            undo.callback(guest.close)
            kept = False
            try:
                guest.start(timeout=timeout)
                yield guest
                kept = witness(guest, None)
            except BaseException as error:
                kept = guest.machine.was_on and witness(guest, error)
                raise
            finally:
                if kept and guest.machine.is_on:
                    leave(guest, source)
                    # Held until this process ends: the image's lock, which the keeper cannot take over.
                    self._left.append(undo.pop_all())

    def _new_folder(self, name: str) -> Path:
        """A folder for one guest, whose name no other guest of the run has."""
        folder = self.host.folder.guests / f"{name[:16]}-{self.worker}-{next(_NUMBERS)}"
        folder.mkdir()
        return folder

    def _make(self, name: str, spec: GuestSpec, image: BaseImage, folder: Path) -> Guest:
        access = _Access.of(spec, folder)
        boot = [overlay(image.boot.disk, folder / "disk.qcow2")] if image.boot.disk else []
        more = [asked_disk(disk, folder / f"disk{number}.qcow2") for number, disk in enumerate(spec.disks, 1)]
        facts = RunFacts(
            run_id=self.host.folder.run,
            owner=self.worker,
            guest=folder.name,
            accel=self.accel,
            folder=folder,
            disks=tuple(disk.file for disk in more),
            fw_cfg=access.files,
            uefi=_uefi_files(),
        )
        plan = plan_guest(spec, replace(image.boot, disk=boot[0].file if boot else None), facts)
        (folder / "domain.xml").write_text(domain_xml(plan))
        renew = partial(_renew, [*boot, *more], plan.uefi)
        renew()
        # Names of guests come again in other tests: the journal of a guest has the events of no other.
        journal = Journal(listeners=[self.journal.add])
        machine = Machine(name, self.host, plan, renew, journal, self.host.autodestroy and not self.keep)
        ssh = SshChannel(
            name, partial(machine.dial_greeter, SSH_PORT), access.login, host_key=access.host_key
        )
        return Guest(
            machine,
            spec,
            ssh,
            image_identity=image.identity,
            kernel=str(spec.kernel or image.kernel_version),
            timeout_scale=self.timeout_scale,
        )


def _renew(disks: Sequence[OwnDisk], uefi: UefiPlan | None) -> None:
    """Make all that a guest writes to as new; libvirt copies the firmware's variables if there are none."""
    for disk in disks:
        disk.renew()
    if uefi:
        uefi.vars.unlink(missing_ok=True)


def _require(spec: GuestSpec) -> None:
    """See that this machine has what few guests need: libvirt's own complaint would name no remedy."""
    if spec.tpm and not (finding := TPM.look()).ok:
        raise HostError(f"a TPM is asked for, but {finding.seen}", finding.remedy, check=TPM.name)


def _uefi_files() -> UefiFiles | None:
    return next((UefiFiles(code, store) for code, store in _OVMF if code.exists() and store.exists()), None)


@dataclass(frozen=True)
class _Access:
    """How we get into one guest, and what it is told for that."""

    login: Login
    host_key: str
    files: dict[str, Path]

    @classmethod
    def of(cls, spec: GuestSpec, folder: Path) -> "_Access":
        """Make the keys of a guest, where it is to take ours, and write what it reads of them.

        They reach the guest as files of QEMU's firmware configuration (QEMU docs/specs/fw_cfg.rst): on a
        command line everyone on this machine could read them.
        """
        own, host = generate_key_pair(), generate_key_pair("host")
        own.save(folder / "id_ed25519")
        files = {"opt/org.kvmlab/authorized_keys": _written(folder / "authorized_keys", own.public)}
        match spec.host_key:
            case GeneratedHostKey():
                files["opt/org.kvmlab/host_key"] = _saved(host, folder / "host_key")
                expected = host.public
            case LearnedHostKey():
                expected = LEARN
            case PinnedHostKey(line):
                expected = line
        return cls(_login(spec, own), expected, files)


def _login(spec: GuestSpec, own: KeyPair) -> Login:
    if spec.login.password is not None:
        return Login(spec.login.user, password=spec.login.password.get_secret_value())
    if spec.login.key is not None:
        return Login(spec.login.user, private_key=_read_key(spec.login.key))
    return Login(spec.login.user, private_key=own.private)


def _read_key(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the login's key cannot be read: {error}", "name a private key", looked_at=[path]
        ) from error


def _written(path: Path, line: str) -> Path:
    path.write_text(f"{line}\n")
    return path


def _saved(key: KeyPair, path: Path) -> Path:
    key.save(path)
    return path
