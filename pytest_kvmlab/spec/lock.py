"""The lock of an image: the exact packages that it is built from, as text to read and to compare."""

import json
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, NonNegativeInt, StringConstraints

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest import Keys
from pytest_kvmlab.spec.manifest import Sha256
from pytest_kvmlab.spec.validation import validate


class LockedPackage(Keys):
    """One exact binary package.

    Attributes:
        name: the package's name (Debian Policy 5.6.7).
        version: its exact version (Debian Policy 5.6.12).
        sha256: hexadecimal digest of its file.
        size: bytes of its file.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    version: Annotated[str, StringConstraints(pattern=r"^[0-9][A-Za-z0-9.+:~-]*$")]
    sha256: Sha256
    size: NonNegativeInt


def _one_of_each(packages: tuple[LockedPackage, ...]) -> tuple[LockedPackage, ...]:
    names = [package.name for package in packages]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names a package twice: {', '.join(twice)}")
    return packages


class _Lock(Keys):
    packages: Annotated[tuple[LockedPackage, ...], AfterValidator(_one_of_each)]


def lock_text(packages: Iterable[LockedPackage]) -> str:
    """Write a lock down: one line per package, sorted, so that equal locks give equal text.

    Args:
        packages: the packages, in any order.

    Returns:
        JSON, with a newline at its end.
    """
    ordered = sorted(packages, key=lambda package: package.name)
    lines = ",\n".join(f"  {json.dumps(package.model_dump())}" for package in ordered)
    return f'{{"packages": [\n{lines}\n]}}\n'


def parse_lock(text: str | bytes, *, source: str) -> tuple[LockedPackage, ...]:
    """Read a lock.

    Args:
        text: what `lock_text` wrote.
        source: the file's path, for the message.

    Returns:
        The packages, sorted by name.

    Raises:
        ConfigError: it is no JSON, or not what `lock_text` writes.
    """
    try:
        written = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not JSON: {error}") from error
    lock = validate(_Lock, written, source=source)
    return tuple(sorted(lock.packages, key=lambda package: package.name))
