"""The kernels at hand: what apt offers for an image, and what images of the store were built of."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pytest_kvmlab.drivers import debian
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.kernel import PACKAGE, architecture_of, best_kernel, in_order, release_of
from pytest_kvmlab.spec.lock import LockedPackage, parse_lock
from pytest_kvmlab.spec.manifest import LOCK

_SHOWN = 12


@dataclass(frozen=True)
class Kernel:
    """A kernel for an image that has another one.

    Attributes:
        name: what the image's name says.
        release: as in `uname -r`.
        packages: the exact package that it is in, and what that needs.
    """

    name: str
    release: str
    packages: tuple[LockedPackage, ...]


def kernels_at_hand(suite: str | None, store: Store) -> dict[str, str]:
    """Which kernels a system could have.

    Args:
        suite: the codename of the release of Debian that it is of; None: any that this machine has.
        store: where images and their packages are.

    Returns:
        The version of each package by the release of its kernel, the oldest first. A package that an image of
        the store was built of counts, whether apt still has it or not.

    Raises:
        ImageError: apt has no lists of the suite.
    """
    found = {package.name: package.version for package in _kept(store)}
    found |= debian.kernels(suite)
    releases = {release: version for name, version in found.items() if (release := release_of(name))}
    return {release: releases[release] for release in sorted(releases, key=in_order)}


def find_kernel(wish: str, suite: str | None, store: Store) -> str:
    """Choose the kernel that somebody asks for.

    Args:
        wish: a version or the name of a package, as `pytest_kvmlab.spec.kernel.parse_kernel` takes it.
        suite: the codename of the release of Debian that is to have it; None: any that this machine has.
        store: where images and their packages are.

    Returns:
        The kernel's release, as in `uname -r`.

    Raises:
        ConfigError: it is a kernel of another architecture.
        ImageError: there is no such kernel; the message names the nearest.
    """
    architecture = debian.architecture()
    if (other := architecture_of(wish)) not in (None, architecture):
        raise ConfigError(
            f"the kernel {wish} is of another architecture: {other}",
            f"guests of this machine run kernels of {architecture}",
        )
    offers = kernels_at_hand(suite, store)
    release = _of_package(wish, suite) if wish.startswith(PACKAGE) else None
    release = release or best_kernel(wish, offers.items(), architecture=architecture)
    if release not in offers:
        raise _unknown(wish, suite, list(offers))
    return release


def new_kernel(release: str, suite: str | None, status: str, store: Store) -> Kernel:
    """Find out which exact packages a system needs for a kernel.

    Args:
        release: what `find_kernel` found.
        suite: the codename of its release of Debian; None: the kernel's package alone, of any release.
        status: its `/var/lib/dpkg/status`.
        store: where images and their packages are.

    Returns:
        The kernel, of what apt would install now; if apt does not have it any more, of what the store has.

    Raises:
        ImageError: neither has it.
    """
    package = f"{PACKAGE}{release}"
    try:
        return Kernel(release, release, _resolved(package, suite, status))
    except ImageError:
        if kept := [each for each in _kept(store) if each.name == package]:
            return Kernel(release, release, (kept[0],))
        raise


def kernel_of(derived: Image, name: str) -> Kernel | None:
    """The kernel of an image that was given it, and the exact packages that were put in for it.

    Args:
        derived: the image.
        name: what its name says of the kernel.

    Returns:
        The kernel; None if the image says nothing of it.
    """
    lock, release = derived.file(LOCK), derived.manifest.kernel_version
    if lock is None or release is None:
        return None
    packages = parse_lock(lock.read_bytes(), source=str(lock))
    if derived.manifest.parent is None:  # what an initramfs is made of beside its kernel is its recipe's
        packages = tuple(package for package in packages if release_of(package.name))
    return Kernel(name, release, packages)


def fetch_kernel(
    kernel: Kernel, suite: str | None, store: Store, *, scratch: Path, progress: Progress
) -> tuple[Path, ...]:
    """Have the packages of a kernel in the store, and tell where they are.

    Args:
        kernel: the kernel.
        suite: the codename of the release of Debian that it is for; None: any that this machine has.
        store: where packages are.
        scratch: an empty folder for what is downloaded.
        progress: told what is being fetched.

    Raises:
        ImageError: a package is nowhere any more, or cannot be fetched.
    """
    debian.fetch(
        kernel.packages, store.packages, suite=suite, backports=True, scratch=scratch, progress=progress
    )
    return tuple(debian.pooled(store.packages, package) for package in kernel.packages)


def _of_package(name: str, suite: str | None) -> str | None:
    with suppress(ImageError):  # which says that there is no such package; what there is is told later
        return release_of(debian.kernel_package(name, suite=suite))
    return release_of(name)


def _resolved(package: str, suite: str | None, status: str) -> tuple[LockedPackage, ...]:
    if suite is None:
        return debian.resolve([package])
    return debian.resolve_system([package], suite=suite, installed=status, backports=True)


def _kept(store: Store) -> Iterator[LockedPackage]:
    """The packages of kernels that images of the store were built of, and that are still there."""
    for image in store.sound():
        if lock := image.file(LOCK):
            for package in parse_lock(lock.read_bytes(), source=str(lock)):
                if release_of(package.name) and debian.pooled(store.packages, package).exists():
                    yield package


def _unknown(wish: str, suite: str | None, releases: Sequence[str]) -> ImageError:
    newest = ", ".join(releases[-_SHOWN:])
    named = get_close_matches(wish.removeprefix(PACKAGE), releases, n=3, cutoff=0.4)
    near = f"; the nearest: {', '.join(named)}" if named else ""
    return ImageError(
        f"there is no kernel '{wish}' for {f'Debian {suite}' if suite else 'this machine'}{near}",
        "name one of these, or, if it is new: apt-get update",
        looked_at=[f"what apt and the store have, the newest of {len(releases)}: {newest}"],
    )
