"""Images of kind `initramfs`: a kernel, its first root file system, and a data disk."""

from collections.abc import Sequence
from pathlib import Path

from pytest_kvmlab.drivers import cpio, ext4, kernel, qemu_img
from pytest_kvmlab.lab import initramfs
from pytest_kvmlab.lab.blueprint import Blueprint, manifest
from pytest_kvmlab.lab.recipes import identity
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.lab.unpacked import kernel_release, newest, unpack_all
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.lock import LockedPackage, lock_text
from pytest_kvmlab.spec.manifest import DISKS, INITRD, KERNEL, LOCK, Manifest
from pytest_kvmlab.spec.recipe import InitramfsKeys, Recipe


def initramfs_blueprint(
    recipe: Recipe,
    keys: InitramfsKeys,
    store: Store,
    *,
    locked: Sequence[LockedPackage] | None,
    any_kernel: bool = False,
    progress: Progress,
) -> Blueprint:
    """Find out what an image would be made of now.

    Args:
        recipe: the recipe.
        keys: what it says.
        store: where packages are.
        locked: the exact packages; None asks apt for the newest.
        any_kernel: the kernel is not the recipe's: modules that it does not have are left out.
        progress: told what is being done.

    Raises:
        ImageError: apt does not know one of the packages.
    """
    packages = locked or newest(keys, progress)
    name = identity(recipe, lock_text(packages))

    def make(folder: Path) -> Manifest:
        image = folder / "image"
        root = unpack_all(packages, store.packages, folder, progress)
        own = _with_modules_of(root, keys) if any_kernel else keys
        _write_files(recipe.folder, own, root, folder, progress)
        (image / LOCK).write_text(lock_text(packages), encoding="utf-8")
        return manifest(
            recipe,
            name,
            image,
            packages={package.name: package.version for package in packages},
            kernel_version=kernel_release(root),
            cmdline=keys.boot.cmdline,
        )

    return Blueprint(name, make)


def _with_modules_of(root: Path, keys: InitramfsKeys) -> InitramfsKeys:
    """The same keys, but of the modules only those that the kernel has; guests need a few in any case."""
    release = kernel_release(root)
    modules = kernel.modules_folder(root, release)
    kernel.require_guests_can_run_it((root / "boot" / f"vmlinuz-{release}").read_bytes(), modules, release)
    found = tuple(name for name in keys.modules if kernel.has_module(name, modules))
    return keys.model_copy(update={"modules": found})


def _write_files(
    recipe_folder: Path, keys: InitramfsKeys, root: Path, folder: Path, progress: Progress
) -> None:
    image, release = folder / "image", kernel_release(root)
    progress("unpacking the kernel", 0.7)
    boot_image = (root / "boot" / f"vmlinuz-{release}").read_bytes()
    (image / KERNEL).write_bytes(kernel.uncompressed(boot_image))
    progress("writing the initramfs", 0.8)
    cpio.write(initramfs.entries(recipe_folder, keys, root, release), image / INITRD)
    progress("making the data disk", 0.9)
    raw = folder / "data.raw"
    ext4.make(raw, keys.data.size, keys.data.label)
    qemu_img.convert(raw, "raw", image / DISKS["qcow2"], "qcow2")
