"""What is known about the guests of an image that has no recipe: a file with the table `guest`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest import GuestKeys, Keys, anchored
from pytest_kvmlab.spec.validation import validate


class _GuestFile(Keys):
    guest: GuestKeys


def load_guest_file(file: Path) -> Mapping[str, object]:
    """Read the table `guest` of a file.

    Args:
        file: a TOML file with that table and nothing else.

    Returns:
        The table as it was written, save that its relative paths are as seen from the file's folder.

    Raises:
        ConfigError: it cannot be read, is no TOML, or says something that is not valid.
    """
    try:
        written = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    keys = validate(_GuestFile, written, source=str(file)).guest
    if keys.image:
        raise ConfigError(f"{file}: guest.image: the image is the one that is imported", "leave it out")
    table = _with_paths(written["guest"], anchored(keys, file.absolute().parent))
    return table if isinstance(table, dict) else {}


def _with_paths(written: object, meant: object) -> object:
    """Put the paths of a model into the table that it was read from."""
    if isinstance(meant, Path):
        return str(meant)
    if isinstance(meant, BaseModel) and isinstance(written, dict):
        return {key: _with_paths(value, getattr(meant, key)) for key, value in written.items()}
    if isinstance(meant, tuple) and isinstance(written, list):
        return [_with_paths(*pair) for pair in zip(written, meant, strict=True)]
    return written
