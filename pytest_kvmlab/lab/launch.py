"""From what is asked for to a guest that is ready, and back to nothing."""

import itertools
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pytest_kvmlab.checks import TPM
from pytest_kvmlab.drivers.ssh import LEARN, SshChannel
from pytest_kvmlab.drivers.ssh_keys import KeyPair, generate_key_pair
from pytest_kvmlab.drivers.ssh_login import Login
from pytest_kvmlab.errors import ConfigError, HostError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.base_image import BaseImage
from pytest_kvmlab.lab.boot import boot_all, boot_one
from pytest_kvmlab.lab.capacity import Capacity
from pytest_kvmlab.lab.claims import Entry
from pytest_kvmlab.lab.disks import OwnDisk, asked_disk, overlay
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.kept import GUEST_DISK, leave
from pytest_kvmlab.lab.lab import Lab
from pytest_kvmlab.lab.machine import SSH_PORT, Machine
from pytest_kvmlab.lab.nic import Nic
from pytest_kvmlab.lab.seed import Seed, write_seed
from pytest_kvmlab.lab.wiring import NO_WIRING, Wiring, wired
from pytest_kvmlab.plan.domain_xml import domain_xml
from pytest_kvmlab.plan.guest import Accel, GuestPlan, RunFacts, UefiFiles, plan_guest
from pytest_kvmlab.spec.access import GeneratedHostKey, LearnedHostKey, PinnedHostKey
from pytest_kvmlab.spec.guest import GuestKeys, merge
from pytest_kvmlab.spec.labfile import LabSpec
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
        capacity: gives them memory, and turns to boot.
        accel: the accelerator that was proved.
        timeout_scale: what every timeout is multiplied by.
        journal: where events go.
        worker: this process's name within the run.
        keep: guests are not tied to this process, so that they may stay after the run.
    """

    host: Host
    images: Images
    capacity: Capacity
    accel: Accel
    timeout_scale: float
    journal: Journal
    worker: str
    keep: bool = False
    _left: list[ExitStack] = field(default_factory=list)

    @contextmanager
    def guest(
        self,
        name: str,
        keys: GuestKeys,
        *,
        lab: LabSpec | None = None,
        source: str,
        witness: Witness,
        timeout: float = _BOOT_SECONDS,
    ) -> Iterator[Guest]:
        """Run a guest as long as the context lasts.

        Args:
            name: the guest's name in its lab.
            keys: what the mark and the lab file say, merged.
            lab: the lab that it is of; its networks are made, its other guests are not started.
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
        with ExitStack() as undo:
            asked = undo.enter_context(self._asked(name, keys, lab.networks if lab else (), source))
            memory = undo.enter_context(self.capacity.memory(asked.spec.memory, source))
            wiring = undo.enter_context(self._wired(lab, {name: keys}, source)) if lab else NO_WIRING
            guest = undo.enter_context(self._made(asked, wiring, memory, witness))
            boot_one(guest, self.capacity.boot, timeout=timeout)
            yield guest

    @contextmanager
    def lab(
        self, lab: LabSpec, *, source: str, witness: Witness, timeout: float = _BOOT_SECONDS
    ) -> Iterator[Lab]:
        """Run all guests of a lab as long as the context lasts.

        Args:
            lab: the lab.
            source: who asks, for messages.
            witness: told of each guest before it ends, and also if it never got ready.
            timeout: seconds that each guest has to get ready.

        Yields:
            The lab, all its guests ready.

        Raises:
            ConfigError: the keys of a guest do not fit together.
            ImageError: an image cannot be used.
            HostError: this machine lacks something.
            GuestError: a guest does not get ready; the message says how far it came.
        """
        with ExitStack() as undo:
            asked = [
                undo.enter_context(self._asked(name, keys, lab.networks, f"{source}: guest '{name}'"))
                for name, keys in lab.guests.items()
            ]
            memory = undo.enter_context(
                self.capacity.memory(sum(guest.spec.memory for guest in asked), source)
            )
            wiring = undo.enter_context(self._wired(lab, {}, source))
            guests = {
                guest.name: undo.enter_context(self._made(guest, wiring, memory, witness)) for guest in asked
            }
            after = {name: keys.after for name, keys in lab.guests.items()}
            boot_all(guests, after, self.capacity.boot, timeout=timeout)
            yield Lab(lab, guests, wiring)

    @contextmanager
    def start(
        self, name: str, keys: GuestKeys, image: BaseImage, *, source: str, timeout: float
    ) -> Iterator[Guest]:
        """Run a guest for a builder: `pytest_kvmlab.lab.base_image.StartsGuests`.

        It does not wait for memory: who has some may wait for the image that is being built.
        """
        asked = _Asked(name, _resolved(keys, image, (), source), image, source, ExitStack())
        with ExitStack() as undo:
            memory = undo.enter_context(self.capacity.memory(asked.spec.memory, source, at_once=True))
            guest = undo.enter_context(self._made(asked, NO_WIRING, memory, _ignore))
            boot_one(guest, self.capacity.boot, timeout=timeout)
            yield guest

    def _wired(
        self, lab: LabSpec, nearer: Mapping[str, GuestKeys], source: str
    ) -> AbstractContextManager[Wiring]:
        """The networks of a lab; its guests have the cards of its file, unless something nearer has a say."""
        cards = {name: nearer.get(name, keys).networks or () for name, keys in lab.guests.items()}
        return wired(self.host, self.worker, lab.networks, cards, source=source)

    @contextmanager
    def _asked(
        self, name: str, keys: GuestKeys, networks: Collection[str], source: str
    ) -> Iterator["_Asked"]:
        """A guest whose keys are complete and whose image is there, built now if need be."""
        with ExitStack() as held:
            image = held.enter_context(self._image(keys, source))
            yield _Asked(name, _resolved(keys, image, networks, source), image, source, held)

    @contextmanager
    def _made(self, asked: "_Asked", wiring: Wiring, memory: Entry, witness: Witness) -> Iterator[Guest]:
        """A guest that is not switched on yet, and is switched off at the end, unless it is to stay."""
        with ExitStack() as undo:
            folder = self._new_folder(asked.name)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            guest = self._make(asked.name, asked.spec, asked.image, wiring, folder)
            undo.callback(guest.close)
            kept = False
            try:
                yield guest
                kept = witness(guest, None)
            except BaseException as error:
                kept = guest.machine.was_on and witness(guest, error)
                raise
            finally:
                if kept and guest.machine.is_on:
                    leave(guest, asked.source, [*asked.image.locks, memory.claim.file])
                    wiring.keep()
                    memory.keep()
                    # Held until the keeper has taken over: the locks of the image.
                    self._left += [undo.pop_all(), asked.held.pop_all()]

    def _image(self, keys: GuestKeys, source: str) -> AbstractContextManager[BaseImage]:
        if keys.image is None:
            raise ConfigError(f"{source}: no image is named", 'name one: kvm(image="micro")')
        return self.images.use(keys.image, guests=self)

    def _new_folder(self, name: str) -> Path:
        """A folder for one guest, whose name no other guest of the run has."""
        folder = self.host.folder.guests / f"{name[:16]}-{self.worker}-{next(_NUMBERS)}"
        folder.mkdir()
        return folder

    def _make(self, name: str, spec: GuestSpec, image: BaseImage, wiring: Wiring, folder: Path) -> Guest:
        access = _Access.of(spec, folder)
        boot = [overlay(image.boot.disk, folder / GUEST_DISK)] if image.boot.disk else []
        more = [asked_disk(disk, folder / f"disk{number}.qcow2") for number, disk in enumerate(spec.disks, 1)]
        facts = RunFacts(
            run_id=self.host.folder.run,
            owner=self.worker,
            guest=folder.name,
            accel=self.accel,
            folder=folder,
            disks=tuple(disk.file for disk in more),
            cards=wiring.cards(name, spec.networks),
            seed=folder / "seed.img" if spec.seed else None,
            fw_cfg=access.files,
            uefi=_uefi_files(),
            qemu_user=self.host.qemu_user,
            keeps_tpm=self.host.own,
        )
        plan = plan_guest(spec, replace(image.boot, disk=boot[0].file if boot else None), facts)
        (folder / "domain.xml").write_text(domain_xml(plan))
        if facts.seed:
            write_seed(facts.seed, access.seed(str(plan.uuid), name))
        renew = partial(_renew, [*boot, *more], plan, self.host.folder.path)
        renew()
        # Names of guests come again in other tests: the journal of a guest has the events of no other.
        journal = Journal(listeners=[self.journal.add])
        autodestroy = self.host.autodestroy and not self.keep
        lines = [wiring.line(name, index) for index in range(len(plan.nics))]
        dial = lines[0].dial if lines and lines[0] else None
        machine = Machine(name, self.host, plan, renew, journal, autodestroy, dial)
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
            save=partial(self.images.save, boot[0].file.path) if boot else None,
            nics=[Nic(nic.mac, machine, line) for nic, line in zip(plan.nics, lines, strict=True)],
        )


@dataclass(frozen=True)
class _Asked:
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


def _resolved(keys: GuestKeys, image: BaseImage, networks: Collection[str], source: str) -> GuestSpec:
    """All that a guest is; what it asks for in vain is told before anything is waited for."""
    spec = resolve_guest(merge(keys, image.keys), source=source, networks=networks)
    _require(spec)
    return spec


def _ignore(*_: object) -> bool:
    """The guest of a builder is nobody's evidence, and is not kept."""
    return False


def _renew(disks: Sequence[OwnDisk], plan: GuestPlan, run: Path) -> None:
    """Make all that a guest writes to as new; libvirt makes firmware variables and a TPM's state anew."""
    for disk in disks:
        disk.renew()
    if plan.uefi:
        plan.uefi.vars.unlink(missing_ok=True)
    if plan.tpm:
        for state in run.glob(f"**/swtpm/{plan.uuid}"):
            shutil.rmtree(state)


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
    host: KeyPair | None
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
        login = _login(spec, own)
        match spec.host_key:
            case GeneratedHostKey():
                files["opt/org.kvmlab/host_key"] = _saved(host, folder / "host_key")
                return cls(login, host.public, host, files)
            case LearnedHostKey():
                return cls(login, LEARN, None, files)
            case PinnedHostKey(line):
                return cls(login, line, None, files)

    def seed(self, instance: str, hostname: str) -> Seed:
        """The same for a guest that asks cloud-init; a key that is pinned must not be replaced by it."""
        pinned = self.host is None and self.host_key != LEARN
        return Seed(instance, hostname, self.login, self.host, keep_host_keys=pinned)


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
