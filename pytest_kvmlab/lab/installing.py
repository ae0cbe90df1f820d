"""Images of kind `installer`: what an installer on a CD-ROM makes of an empty disk.

It is answered on the serial line, and has done its work when it switches the guest off or reboots it.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers import fat, qemu_img
from pytest_kvmlab.errors import GuestError, HostError, ImageError, SerialMismatch, WaitTimeout
from pytest_kvmlab.lab.base_image import BaseImage, StartsGuests
from pytest_kvmlab.lab.blueprint import Blueprint, manifest
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.installation_disc import make_disc
from pytest_kvmlab.lab.recipes import identity
from pytest_kvmlab.lab.store import Store, record
from pytest_kvmlab.lab.unpacked import newest, unpack_all
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.plan.guest import BootSource
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.access import LoginKeys
from pytest_kvmlab.spec.guest import DiskKeys, GuestKeys, given
from pytest_kvmlab.spec.lock import LockedPackage, lock_text
from pytest_kvmlab.spec.manifest import DISKS, LOCK, Manifest
from pytest_kvmlab.spec.quantity import MIB
from pytest_kvmlab.spec.recipe import Answers, InstallerKeys, IsoFile, Recipe

_POWER_ON_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_TAIL_LINES = 20
_ESCAPES = re.compile(r"\\x1b\[[0-9;?]*[A-Za-z]|\\x[01][0-9a-f]")
_ANSWERS_FOLDER = "answers"
_ANSWERS_ROOM = 4 * MIB  # for the tables of a FAT file system
_HARDWARE = (
    "vcpus",
    "memory",
    "machine",
    "cpu",
    "firmware",
    "networks",
    "clock",
    "rng",
    "tpm",
    "video",
    "sound",
)
# A boot sector's code, and what tells a BIOS that there is some
_CODE, _SIGNATURE, _SECTOR = slice(0, 440), slice(510, 512), 512


def installer_blueprint(
    recipe: Recipe,
    keys: InstallerKeys,
    store: Store,
    guests: StartsGuests,
    *,
    locked: Sequence[LockedPackage] | None,
    progress: Progress,
) -> Blueprint:
    """Find out what an image would be made of now.

    The same inputs do not give the same bytes: the installer's file systems carry times and random numbers.

    Args:
        recipe: the recipe.
        keys: what it says.
        store: where packages are.
        guests: starts the guest that the installer runs in.
        locked: the exact packages of its disc; None asks apt for the newest.
        progress: told what is being done.

    Raises:
        ImageError: apt does not know one of the packages.
    """
    packages = (locked or newest(keys.disc, progress)) if keys.disc else ()
    name = identity(recipe, lock_text(packages))
    installer = _Installer(recipe, keys, packages, store, guests, progress)
    return Blueprint(name, lambda folder: installer.make(folder, name))


@dataclass(frozen=True)
class _Installer:
    """What makes an image, all its inputs known."""

    recipe: Recipe
    keys: InstallerKeys
    packages: Sequence[LockedPackage]
    store: Store
    guests: StartsGuests
    progress: Progress

    def make(self, folder: Path, name: str) -> Manifest:
        self._install(self._disc(folder), folder)
        (folder / "image" / LOCK).write_text(lock_text(self.packages), encoding="utf-8")
        versions = {package.name: package.version for package in self.packages}
        return manifest(self.recipe, name, folder / "image", packages=versions, disk_boots=True)

    def _disc(self, folder: Path) -> Path:
        if self.keys.iso:
            return _checked(self.recipe.folder, self.keys.iso, self.progress)
        assert self.keys.disc  # noqa: S101  the recipe has one of the two
        return make_disc(
            self.recipe.folder,
            self.keys.disc,
            unpack_all(self.packages, self.store.packages, folder, self.progress),
            folder,
            self.progress,
        )

    def _install(self, disc: Path, folder: Path) -> None:
        """Let the installer run, and take its disk."""
        source = f"the installer of image '{self.recipe.name}'"
        image = BaseImage(str(disc), GuestKeys(), BootSource(cdrom=disc), None)
        machine = _machine(self.recipe, self.keys, folder)
        self.progress("starting the installer", None)
        with self.guests.start(
            self.recipe.name, machine, image, source=source, timeout=_POWER_ON_SECONDS
        ) as guest:
            _Installation(source, guest, self.keys, self.progress).run()
            disk = guest.machine.plan.disks[0].file.path
            self.progress("keeping the installed disk", None)
            _refuse_unbootable(source, disk, folder, bios=guest.spec.firmware == "bios")
            qemu_img.convert(disk, "qcow2", folder / "image" / DISKS["qcow2"], "qcow2")


def _checked(recipe_folder: Path, iso: IsoFile, progress: Progress) -> Path:
    disc = recipe_folder.absolute() / iso.file.expanduser()
    if not disc.is_file():
        raise ImageError("the installation disc is not there", looked_at=[disc])
    progress(f"checking {disc.name}", None)
    if (found := record(disc).sha256) != iso.sha256:
        raise ImageError(
            f"the installation disc {disc.name} is not the one that the recipe means",
            "get the right one, or correct iso.sha256",
            looked_at=[disc, f"SHA-256 expected: {iso.sha256}", f"SHA-256 found:    {found}"],
        )
    return disc


def _machine(recipe: Recipe, keys: InstallerKeys, folder: Path) -> GuestKeys:
    """The installer finds the hardware that the image's guests will have."""
    told = {name: value for name, value in given(keys.guest).items() if name in _HARDWARE}
    told |= {"memory": keys.memory} if keys.memory else {}
    disks = [DiskKeys.model_construct(size=keys.size)]
    if keys.answers:
        disks.append(DiskKeys(file=_answers_disk(recipe.folder, keys.answers, folder), format="raw"))
    told |= {"image": recipe.name, "disks": tuple(disks), "boot": ("cdrom",)}
    told |= {"login": LoginKeys(channel="none")}
    return GuestKeys.model_construct(_fields_set=set(told), **told)


def _answers_disk(recipe_folder: Path, answers: Answers, folder: Path) -> Path:
    source, disk = recipe_folder / _ANSWERS_FOLDER, folder / "answers.raw"
    paths = [path for path in source.rglob("*") if path.is_file()]
    if not paths:
        raise ImageError("the recipe has no answers for its installer", looked_at=[source])
    files = {str(path.relative_to(source)): path.read_bytes() for path in paths}
    room = sum(-(-len(content) // MIB) * MIB for content in files.values())
    fat.make(disk, _ANSWERS_ROOM + room, answers.label, files)
    return disk


def _refuse_unbootable(source: str, disk: Path, folder: Path, *, bios: bool) -> None:
    sector = qemu_img.first_bytes(qemu_img.ForeignDisk(disk, "qcow2"), folder / "sector", _SECTOR)
    if sector[_SIGNATURE] != b"\x55\xaa":
        lacks = "it has no boot signature, nor a partition table"
    elif bios and not any(sector[_CODE]):
        lacks = "it has a partition table, but no boot loader before it"
    else:
        return
    raise ImageError(
        f"{source} ended, but its disk does not boot: {lacks}",
        "look at what the installer said: did it give up?",
    )


@dataclass
class _Installation:
    """One installer at work."""

    source: str
    guest: Guest
    keys: InstallerKeys
    progress: Progress
    _answered: int = 0

    def run(self) -> None:
        """See it to its end."""
        deadline = self.guest.deadline(self.keys.timeout)
        self.guest.machine.domain.end_at_reboot()
        try:
            for step in self.keys.dialogue:
                self._wait(partial(self._shown, step.expect), deadline)
                self.guest.serial.send(step.send)
                self._answered += 1
            self._wait(self._ended, deadline)
        except (GuestError, WaitTimeout) as error:
            raise self._failed(str(error.args[0])) from error

    def _wait(self, attempt: Callable[[], bool], deadline: Deadline) -> None:
        def look() -> bool | None:
            if attempt():
                return True
            self._tell()
            return None

        if not until(look, deadline, every=_LOOK_SECONDS):
            raise WaitTimeout(f"it takes longer than {deadline.seconds:g} s")

    def _tell(self) -> None:
        """Pass on what the installer says; a guest that broke is not waited for."""
        self.progress(f"installing: {_newest_line(self.guest)}", None)
        try:
            self.guest.machine.check("boot")
        except GuestError:
            if self.guest.machine.is_on:  # else the next look finds out whether that was to be
                raise

    def _shown(self, pattern: str) -> bool:
        try:
            self.guest.serial.expect(pattern, timeout=_LOOK_SECONDS)
        except SerialMismatch:
            return False
        return True

    def _ended(self) -> bool:
        return not self.guest.machine.is_on

    def _failed(self, why: str) -> ImageError:
        patterns = [step.expect for step in self.keys.dialogue]
        done, left = patterns[: self._answered], patterns[self._answered :]
        waited = f"the serial line to show {left[0]!r}" if left else "the guest to switch off or to reboot"
        return ImageError(
            f"{self.source} did not finish: {why}",
            "correct the recipe's dialogue, or give it more time with 'timeout'",
            looked_at=[
                f"it waited for {waited}",
                f"the last of {len(patterns)} steps that matched: {done[-1]!r}"
                if done
                else "no step matched",
                *_evidence(self.guest),
                *self.guest.serial.tail(_TAIL_LINES),
            ],
        )


def _newest_line(guest: Guest) -> str:
    """Without what moves a terminal's cursor, which the console shows as text."""
    lines = (_ESCAPES.sub("", line).strip() for line in reversed(guest.serial.tail(_TAIL_LINES)))
    return next(filter(None, lines), "the installer says nothing yet")


def _evidence(guest: Guest) -> list[Path]:
    """Copies of the console's log and of the screen: the guest's own folder goes with it."""
    folder = Path(tempfile.mkdtemp(prefix=f"kvmlab-{guest.name}-"))
    shutil.copy(guest.machine.console_log, folder)
    with suppress(HostError, GuestError):  # a guest that is off has no screen
        guest.screenshot(folder / "screen.png")
    return sorted(folder.iterdir())
