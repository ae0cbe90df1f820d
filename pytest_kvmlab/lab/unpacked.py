"""Packages unpacked over each other, none of them installed: what a first root file system is made of."""

from collections.abc import Sequence
from pathlib import Path

from pytest_kvmlab.drivers import debian
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.lock import LockedPackage
from pytest_kvmlab.spec.recipe import FirstRoot


def newest(keys: FirstRoot, progress: Progress) -> tuple[LockedPackage, ...]:
    """Ask apt for the exact packages that a first root would be made of now.

    Args:
        keys: names them.
        progress: told what is being done.

    Raises:
        ImageError: apt does not know one of them.
    """
    progress("asking apt for package versions", None)
    return debian.resolve([debian.kernel_package(keys.kernel), *keys.packages])


def unpack_all(packages: Sequence[LockedPackage], pool: Path, folder: Path, progress: Progress) -> Path:
    """Unpack packages, fetched before if need be.

    Args:
        packages: the exact packages.
        pool: where packages are kept.
        folder: gets a folder with what is in them.
        progress: told what is being done.

    Returns:
        That folder.

    Raises:
        ImageError: one of them cannot be had, or is damaged.
    """
    scratch, root = folder / "downloads", folder / "packages"
    scratch.mkdir()
    root.mkdir()
    debian.fetch(packages, pool, suite=None, scratch=scratch, progress=progress)
    for package in packages:
        progress(f"unpacking {package.name}", None)
        debian.unpack(debian.pooled(pool, package), root)
    return root


def kernel_release(root: Path) -> str:
    """Say which kernel unpacked packages have.

    Args:
        root: the folder that they are unpacked in.

    Returns:
        Its release, as in `uname -r`.

    Raises:
        ImageError: they have none, or several.
    """
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in root.glob("boot/vmlinuz-*"))
    if len(kernels) != 1:
        raise ImageError(f"the packages have {len(kernels)} kernels, not one", looked_at=[root / "boot"])
    return kernels[0]
