"""Images of kind `initramfs`: a kernel, its first root file system, and a data disk."""

from collections.abc import Sequence
from pathlib import Path

from pytest_kvmlab.drivers import cpio, debian, ext4, kernel, qemu_img
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab import initramfs
from pytest_kvmlab.lab.blueprint import Blueprint, manifest
from pytest_kvmlab.lab.recipes import identity
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.manifest import DISKS, INITRD, KERNEL, Manifest
from pytest_kvmlab.spec.recipe import InitramfsKeys, Recipe


def initramfs_blueprint(recipe: Recipe, keys: InitramfsKeys, progress: Progress) -> Blueprint:
    """Find out what an image would be made of now.

    Args:
        recipe: the recipe.
        keys: what it says.
        progress: told what is being done.

    Raises:
        ImageError: apt does not know one of the packages.
    """
    progress("asking apt for package versions", 0.0)
    packages = debian.resolve([debian.kernel_package(keys.kernel), *keys.packages])
    exact = [(package.name, package.version, package.sha256) for package in packages]
    name = identity(recipe.name, recipe.folder, exact)

    def make(folder: Path) -> Manifest:
        image = folder / "image"
        root = packages_root(packages, folder, progress)
        _write_files(recipe.folder, keys, root, folder, progress)
        return manifest(
            recipe,
            name,
            image,
            packages={package.name: package.version for package in packages},
            kernel_version=kernel_release(root),
            cmdline=keys.boot.cmdline,
        )

    return Blueprint(name, make)


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


def packages_root(packages: Sequence[debian.Package], folder: Path, progress: Progress) -> Path:
    """Download packages and unpack them over each other.

    Args:
        packages: the exact packages.
        folder: gets the folders `downloads` and `packages`.
        progress: told what is being done.

    Returns:
        The folder that they are unpacked in.

    Raises:
        ImageError: one of them cannot be had, or is damaged.
    """
    downloads, root = folder / "downloads", folder / "packages"
    downloads.mkdir()
    root.mkdir()
    megabytes = sum(package.size for package in packages) / 1e6
    progress(f"downloading {len(packages)} packages, {megabytes:.0f} MB", 0.1)
    debian.download(packages, downloads)
    for package in packages:
        progress(f"unpacking {package.name}", 0.4)
        debian.unpack(downloads / package.file, root)
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
