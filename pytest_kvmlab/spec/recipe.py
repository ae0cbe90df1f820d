"""What an image is made of: `image.toml` in the folder of a recipe."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    StrictInt,
    StringConstraints,
    model_validator,
)

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.characters import one_line
from pytest_kvmlab.spec.guest import GuestKeys, ImageName, Keys
from pytest_kvmlab.spec.manifest import Sha256
from pytest_kvmlab.spec.names import check_image_name, nearest
from pytest_kvmlab.spec.quantity import Memory, Size
from pytest_kvmlab.spec.text import FilePath, Line
from pytest_kvmlab.spec.validation import validate

RECIPE_FILE = "image.toml"

_FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def _stays_inside(pattern: str) -> str:
    path = PurePosixPath(pattern)
    if not pattern or path.is_absolute() or ".." in path.parts:
        raise ValueError("should be a path below the packages' root, without a leading slash")
    return pattern


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression ({error})") from None
    return pattern


# Debian Policy 5.6.7; an argument of apt that begins with a dash would be an option
PackageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
FilePattern = Annotated[str, AfterValidator(_stays_inside)]


class DataDisk(Keys):
    """The table `data`: the disk of the image, an ext4 file system that guests write copies of."""

    size: Size
    label: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,16}$")] = "data"


class Boot(Keys):
    """The table `boot`: what the kernel is told."""

    cmdline: Line


class FirstRoot(Keys):
    """What a kernel starts with: packages' files and modules in its first root file system."""

    kernel: PackageName
    packages: Annotated[tuple[PackageName, ...], Field(min_length=1)]
    files: Annotated[tuple[FilePattern, ...], Field(min_length=1)]
    modules: tuple[ModuleName, ...] = ()


class InitramfsKeys(FirstRoot):
    """A recipe of kind `initramfs`: packages' files in the kernel's first root, and a data disk."""

    kind: Literal["initramfs"]
    data: DataDisk
    boot: Boot
    guest: GuestKeys = GuestKeys()


@dataclass(frozen=True)
class Suite:
    """A release of Debian: `debian:bookworm`."""

    codename: str


_ORIGINS = "should be 'debian:SUITE', such as 'debian:bookworm', or the name of an image"


def _origin(written: object) -> Suite | str:
    kind, colon, codename = one_line(written).partition(":")
    if not colon:
        return check_image_name(kind)
    if kind != "debian" or not re.fullmatch(r"[a-z][a-z0-9-]*", codename):
        raise ValueError(_ORIGINS)
    return Suite(codename)


Origin = Annotated[Suite | str, PlainValidator(_origin)]


class DebianKeys(Keys):
    """A recipe of kind `debian`: a Debian system on a whole disk, from a suite or grown from another one.

    `size` of `None` is the origin's; `cmdline` is what the kernel is told, whoever starts it.
    """

    kind: Literal["debian"]
    origin: Annotated[Origin, Field(alias="from")]
    packages: tuple[PackageName, ...] = ()
    size: Size | None = None
    cmdline: Line | None = None
    guest: GuestKeys = GuestKeys()


class LayerKeys(Keys):
    """A recipe of kind `layer`: another image, after `setup.sh` has run in a guest; `timeout` in seconds."""

    kind: Literal["layer"]
    origin: Annotated[ImageName, Field(alias="from")]
    timeout: Annotated[StrictInt, Field(ge=1)] = 600
    guest: GuestKeys = GuestKeys()


class IsoFile(Keys):
    """The table `iso`: somebody's installation disc, and its hexadecimal SHA-256."""

    file: FilePath
    sha256: Sha256


class Step(Keys):
    """One table `dialogue`: a regular expression that the serial line shows, and what is typed then."""

    expect: Annotated[str, AfterValidator(_regular_expression)]
    send: str


class Answers(Keys):
    """The table `answers`: a second disk, a FAT file system with the files of the folder `answers`."""

    label: Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_][A-Z0-9_-]{0,10}$")]


class InstallerKeys(Keys):
    """A recipe of kind `installer`: what an installer on a CD-ROM makes of an empty disk.

    The disc is somebody's file (`iso`), or made of packages and of the folder `disc` (`disc`); `memory` of
    `None` is what guests of the image have; `timeout` in seconds until the installer has switched off.
    """

    kind: Literal["installer"]
    iso: IsoFile | None = None
    disc: FirstRoot | None = None
    size: Size
    memory: Memory | None = None
    timeout: Annotated[StrictInt, Field(ge=1)] = 1800
    dialogue: tuple[Step, ...] = ()
    answers: Answers | None = None
    guest: GuestKeys = GuestKeys()

    @model_validator(mode="after")
    def _one_disc(self) -> Self:
        if (self.iso is None) == (self.disc is None):
            raise ValueError("give either a disc that is there ('iso') or what to make one of ('disc')")
        return self


RecipeKeys = InitramfsKeys | DebianKeys | LayerKeys | InstallerKeys
_KINDS: Mapping[object, type[RecipeKeys]] = {
    "initramfs": InitramfsKeys,
    "debian": DebianKeys,
    "layer": LayerKeys,
    "installer": InstallerKeys,
}


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read.

    Attributes:
        name: the name of the image, which is the name of the recipe's folder.
        folder: where `image.toml` is.
        keys: what it says.
        guest: its table `guest` as it was written: what a guest of this image has unless told otherwise.
    """

    name: str
    folder: Path
    keys: RecipeKeys
    guest: Mapping[str, object]

    @property
    def origin(self) -> str | None:
        """The name of the image that this one grows from, if it does."""
        match self.keys:
            case LayerKeys(origin=str(name)) | DebianKeys(origin=str(name)):
                return name
        return None


def load_recipe(folder: Path) -> Recipe:
    """Read the recipe in a folder.

    Args:
        folder: a folder with an `image.toml`; its name becomes the image's.

    Returns:
        The recipe.

    Raises:
        ConfigError: the file is missing, is no TOML, or says something that is not valid; the message names
            file, key and nearest valid key.
    """
    name, file = folder.resolve().name, folder / RECIPE_FILE
    if not _FOLDER_NAME.fullmatch(name):
        raise ConfigError(f"'{name}' cannot name an image", "use lower-case letters, digits, dots and dashes")
    try:
        written = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"there is no recipe in {folder}: {error.strerror}", looked_at=[file]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    keys = validate(_keys_of(written, file), written, source=str(file))
    return Recipe(name, folder, keys, written.get("guest", {}))


def _keys_of(written: Mapping[str, object], file: Path) -> type[RecipeKeys]:
    kind = written.get("kind")
    if kind in _KINDS:
        return _KINDS[kind]
    near = nearest(kind, map(str, _KINDS))
    told = "missing" if kind is None else f"no such kind of image; found {kind!r}{near}"
    raise ConfigError(f"{file}: kind: {told}", f"kinds: {', '.join(map(str, _KINDS))}")
