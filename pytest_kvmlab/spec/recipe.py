"""What an image is made of: `image.toml` in the folder of a recipe."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest import GuestKeys, Keys
from pytest_kvmlab.spec.quantity import Size
from pytest_kvmlab.spec.text import Line
from pytest_kvmlab.spec.validation import validate

RECIPE_FILE = "image.toml"

_FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def _stays_inside(pattern: str) -> str:
    path = PurePosixPath(pattern)
    if not pattern or path.is_absolute() or ".." in path.parts:
        raise ValueError("should be a path below the packages' root, without a leading slash")
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


class RecipeKeys(Keys):
    """The keys of `image.toml`."""

    kind: Literal["initramfs"]
    kernel: PackageName
    packages: Annotated[tuple[PackageName, ...], Field(min_length=1)]
    files: Annotated[tuple[FilePattern, ...], Field(min_length=1)]
    modules: tuple[ModuleName, ...] = ()
    data: DataDisk
    boot: Boot
    guest: GuestKeys = GuestKeys()


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
    keys = validate(RecipeKeys, written, source=str(file))
    return Recipe(name, folder, keys, written.get("guest", {}))
