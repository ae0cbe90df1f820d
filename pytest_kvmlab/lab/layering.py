"""Images of kind `layer`: another image's disk, after `setup.sh` has run in a guest of that image."""

import base64
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.console_log import printable
from pytest_kvmlab.errors import ConfigError, ImageError, WaitTimeout
from pytest_kvmlab.lab.base_image import StartsGuests, base_image
from pytest_kvmlab.lab.blueprint import Blueprint, manifest
from pytest_kvmlab.lab.commands import COMMAND_SECONDS, told
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.recipes import command_to_build, identity
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.lab.transfer import share
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.plan.guest import DiskFile
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.guest import GuestKeys, given
from pytest_kvmlab.spec.manifest import DISKS, INITRD, KERNEL, Manifest
from pytest_kvmlab.spec.recipe import LayerKeys, Recipe

Rescue = Callable[[Guest], None]
"""Called with the guest in which `setup.sh` failed, before it ends."""

SETUP = "setup.sh"
_START_SECONDS = 120.0
_LOOK_SECONDS = 1.0
_SHOWN_LINES = 30
_PIECE_BYTES = 4500  # as base64 a third more; dropbear takes commands of 9000 characters
_SHOWN_BYTES = 4000
# Said of the image's guests, and only true once `setup.sh` has run.
_OF_THE_FINISHED = ("login", "host_key", "ready")


def layer_blueprint(
    recipe: Recipe,
    keys: LayerKeys,
    parent: Image,
    guests: StartsGuests,
    *,
    progress: Progress,
    rescue: Rescue | None = None,
) -> Blueprint:
    """Find out what an image would be made of.

    The same inputs do not give the same bytes: a running system writes times and random numbers.

    Args:
        recipe: the recipe.
        keys: what it says.
        parent: the image below, locked until the new one is in its place.
        guests: starts the guest that `setup.sh` runs in.
        progress: told what is being done.
        rescue: gets the guest in which `setup.sh` failed.

    Raises:
        ImageError: the parent has no disk, or there is no `setup.sh`.
    """
    script, disk = _script(recipe), _disk(parent, recipe.name)
    name = identity(recipe, parent.manifest.identity)
    layer = _Layer(recipe, keys, parent, guests, progress, rescue)

    def make(folder: Path) -> Manifest:
        image = folder / "image"
        try:
            layer.build(script, disk, image)
        except WaitTimeout as error:
            raise ImageError(f"layer '{recipe.name}' cannot be built: {error}") from error
        _share_kernel(parent, image)
        return _manifest(recipe, name, parent, image)

    return Blueprint(name, make)


def _disk(parent: Image, name: str) -> DiskFile:
    if parent.disk is None or parent.disk_format is None:
        raise ImageError(
            f"image '{parent.name}' has no disk that '{name}' could stand on", "name another one in 'from'"
        )
    return DiskFile(parent.disk, parent.disk_format)


def _script(recipe: Recipe) -> bytes:
    file = recipe.folder / SETUP
    try:
        return file.read_bytes()
    except OSError as error:
        raise ImageError(
            f"the recipe {recipe.name} has no {SETUP}: {error.strerror}", looked_at=[file]
        ) from error


@dataclass(frozen=True)
class _Layer:
    """What makes an image, all its inputs known."""

    recipe: Recipe
    keys: LayerKeys
    parent: Image
    guests: StartsGuests
    progress: Progress
    rescue: Rescue | None

    def build(self, script: bytes, below: DiskFile, image: Path) -> None:
        """Run the script in a guest of the parent, and take what was written to its disk."""
        with self._guest() as guest:
            setup = _Setup.started(guest, script)
            if failure := _watched(setup, guest.deadline(self.keys.timeout), self.progress):
                raise self._failed(setup, failure)
            setup.remove()
            self.progress("shutting the guest down", None)
            guest.shutdown()
            self.progress("keeping what was written", None)
            _keep_disk(guest.machine.plan.disks[0].file.path, below, image)

    @contextmanager
    def _guest(self) -> Iterator[Guest]:
        """A guest with the hardware that the recipe asks for, and with the parent's way in."""
        self.progress(f"starting a guest of {self.parent.name}", None)
        asked = given(self.keys.guest).items()
        own = {name: value for name, value in asked if name not in _OF_THE_FINISHED}
        own["image"] = self.parent.name
        keys = GuestKeys.model_construct(_fields_set=set(own), **own)
        source, parent = f"the guest that builds image '{self.recipe.name}'", base_image(self.parent)
        with self.guests.start(
            self.recipe.name, keys, parent, source=source, timeout=_START_SECONDS
        ) as guest:
            if guest.spec.login.channel == "none":
                raise ConfigError(f"{source} has no channel for commands", "give the image below a login")
            yield guest

    def _failed(self, setup: "_Setup", how: str) -> ImageError:
        name, output = self.recipe.name, setup.output(_SHOWN_LINES)
        if self.rescue:
            self.rescue(setup.guest)
        return ImageError(
            f"{SETUP} of layer '{name}' {how}",
            f"look around in the half-built guest: {command_to_build(self.recipe.folder)} --shell",
            looked_at=output or ["(it wrote nothing)"],
        )


@dataclass(frozen=True)
class _Setup:
    """A script at work in a guest: started in the background, so that its output can be watched.

    Attributes:
        guest: where it runs.
        folder: its own folder there, quoted for a shell.
    """

    guest: Guest
    folder: str

    @classmethod
    def started(cls, guest: Guest, script: bytes) -> "_Setup":
        folder = shlex.quote(_done(guest, "mktemp -d").strip())
        for piece in _pieces(script):
            _done(guest, f"echo {piece} | base64 -d >>{folder}/{SETUP}")
        work = shlex.quote(f"cd /; {folder}/{SETUP}; echo $? >{folder}/status")
        _done(
            guest,
            f"chmod 700 {folder}/{SETUP} && {{ setsid sh -c {work} </dev/null >{folder}/output 2>&1 & }}",
        )
        return cls(guest, folder)

    def status(self) -> int | None:
        """Its exit status, or None while it works."""
        told = self._ask(f"cat {self.folder}/status 2>/dev/null").strip()
        return int(told) if told.isdecimal() else None

    def output(self, lines: int) -> list[str]:
        """The newest lines that it wrote."""
        told = self._ask(f"tail -c {_SHOWN_BYTES} {self.folder}/output | tail -n {lines}")
        return [printable(line.encode()) for line in told.splitlines()]

    def remove(self) -> None:
        _done(self.guest, f"rm -rf {self.folder}")

    def _ask(self, command: str) -> str:
        return _asked(self.guest, command).stdout


def _asked(guest: Guest, command: str) -> CommandResult:
    return guest.ask(command, guest.deadline(COMMAND_SECONDS))


def _done(guest: Guest, command: str) -> str:
    result = _asked(guest, command)
    if not result.ok:
        raise ImageError(
            told(guest.name, result, "0"), "is there room, and do mktemp, base64 and setsid exist?"
        )
    return result.stdout


def _pieces(script: bytes) -> Iterator[str]:
    for start in range(0, len(script), _PIECE_BYTES):
        yield base64.b64encode(script[start : start + _PIECE_BYTES]).decode()


def _watched(setup: _Setup, deadline: Deadline, progress: Progress) -> str:
    """Wait for the script; how it failed, or nothing."""

    def look() -> int | None:
        newest = setup.output(1)
        progress(f"{SETUP}: {newest[0]}" if newest else SETUP, None)
        return setup.status()

    status = until(look, deadline, every=_LOOK_SECONDS)
    if status is None:
        return f"did not end within {deadline.seconds:g} s"
    return f"ended with exit status {status}" if status else ""


def _keep_disk(overlay: Path, below: DiskFile, image: Path) -> None:
    """Named as seen from the layer's own folder, so that the store may be moved, or mounted elsewhere."""
    disk = image / DISKS["qcow2"]
    qemu_img.copy_overlay(overlay, below.path, below.format, disk)
    qemu_img.name_backing(disk, Path("..", below.path.parent.name, below.path.name), below.format)


def _share_kernel(parent: Image, image: Path) -> None:
    """What the parent's guests start with, if its disk does not start them: it finds its modules still."""
    for file in filter(None, map(parent.file, (KERNEL, INITRD))):
        share(file, image / file.name)


def _manifest(recipe: Recipe, name: str, parent: Image, image: Path) -> Manifest:
    below = parent.manifest
    return manifest(
        recipe,
        name,
        image,
        parent=below.identity,
        packages=below.packages,
        kernel_version=below.kernel_version,
        cmdline=below.cmdline,
        disk_boots=below.disk_boots,
        guest={**below.guest, **recipe.guest},
    )
