"""From a recipe to an image in the store."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from pytest_kvmlab.drivers import cpio, debian, ext4, kernel, qemu_img
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab import initramfs
from pytest_kvmlab.lab.store import Image, Store, record
from pytest_kvmlab.spec.manifest import DISK, INITRD, KERNEL, Manifest
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.recipe import RECIPE_FILE, Recipe, load_recipe

Progress = Callable[[str, float | None], None]
"""Told what is being done now, and the done share of the whole, 0 to 1, or None if that is unknown."""

# Part of every image's identity: raise it whenever this package builds other bytes of the same recipe.
BUILDER = 1


def recipes() -> dict[str, Path]:
    """The recipes that come with this package.

    Returns:
        The folder of each by the name of its image.
    """
    shipped = Path(str(resources.files("pytest_kvmlab").joinpath("images")))
    return {file.parent.name: file.parent for file in sorted(shipped.glob(f"*/{RECIPE_FILE}"))}


def ensure(name: str, store: Store, *, progress: Progress) -> Image:
    """Get an image, built now if there is none of the recipe as it is.

    An image of the unchanged recipe is used as it is, even if the archive has newer packages by now: that is
    quick, needs no network, and a run does not change what it tests. `build` looks for newer ones.

    Args:
        name: the image.
        store: where images live.
        progress: told what is being done, if something is.

    Returns:
        The image.

    Raises:
        ImageError: there is no such image and no recipe for it, it is damaged, or building fails.
        ConfigError: the recipe is wrong.
        HostError: a program that building needs is missing.
    """
    image, folder = store.find(name), recipes().get(name)
    if image and (folder is None or image.recipe == recipe_digest(folder)):
        return image
    if folder is None:
        known = [*recipes(), *(image.name for image in store.images())]
        raise ImageError(
            f"there is no image '{name}'{nearest(name, known)}",
            f"known images: {', '.join(dict.fromkeys(known))}",
            looked_at=[store.root],
        )
    return build(folder, store, progress=progress)


def build(recipe_folder: Path, store: Store, *, progress: Progress) -> Image:
    """Build an image of the newest packages, unless exactly that is there already.

    Args:
        recipe_folder: the folder of the recipe; its name becomes the image's.
        store: where the image goes.
        progress: told what is being done.

    Returns:
        The image.

    Raises:
        ImageError: a package cannot be had, the store cannot be written to, or a step fails.
        ConfigError: the recipe is wrong.
        HostError: a program that building needs is missing.
    """
    recipe = load_recipe(recipe_folder)
    waiting = f"waiting for another process that builds the image {recipe.name}"
    with store.building(recipe.name, waiting=lambda: progress(waiting, None)) as folder:
        progress("asking apt for package versions", 0.0)
        packages = debian.resolve([debian.kernel_package(recipe.keys.kernel), *recipe.keys.packages])
        there = store.intact(_identity(recipe, packages))
        if there:
            store.name(there)
            return there
        return _build(recipe, packages, folder, store, progress)


def recipe_digest(folder: Path) -> str:
    """Say which recipe this is.

    Args:
        folder: the folder of a recipe.

    Returns:
        A hexadecimal digest of its files and of the builder's format.
    """
    digests = {str(path.relative_to(folder)): _digest(path.read_bytes()) for path in _recipe_files(folder)}
    return _digest(json.dumps([BUILDER, digests], sort_keys=True).encode())


def _recipe_files(folder: Path) -> list[Path]:
    """Leaves out what editors leave behind."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("~")]


def _identity(recipe: Recipe, packages: Sequence[debian.Package]) -> str:
    exact = [(package.name, package.version, package.sha256) for package in packages]
    return _digest(json.dumps([recipe.name, recipe_digest(recipe.folder), exact]).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _build(
    recipe: Recipe, packages: Sequence[debian.Package], folder: Path, store: Store, progress: Progress
) -> Image:
    image = folder / "image"
    image.mkdir()
    root = _packages_root(packages, folder, progress)
    release = _kernel_release(root)
    progress("unpacking the kernel", 0.7)
    boot_image = (root / "boot" / f"vmlinuz-{release}").read_bytes()
    (image / KERNEL).write_bytes(kernel.uncompressed(boot_image))
    progress("writing the initramfs", 0.8)
    cpio.write(initramfs.entries(recipe, root, release), image / INITRD)
    progress("making the data disk", 0.9)
    _make_disk(recipe, folder / "data.raw", image / DISK)
    return store.publish(image, _manifest(recipe, packages, release, image))


def _packages_root(packages: Sequence[debian.Package], folder: Path, progress: Progress) -> Path:
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


def _kernel_release(root: Path) -> str:
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in root.glob("boot/vmlinuz-*"))
    if len(kernels) != 1:
        raise ImageError(f"the packages have {len(kernels)} kernels, not one", looked_at=[root / "boot"])
    return kernels[0]


def _make_disk(recipe: Recipe, raw: Path, disk: Path) -> None:
    ext4.make(raw, recipe.keys.data.size, recipe.keys.data.label)
    qemu_img.convert(raw, "raw", disk, "qcow2")


def _manifest(recipe: Recipe, packages: Sequence[debian.Package], release: str, image: Path) -> Manifest:
    return Manifest(
        name=recipe.name,
        identity=_identity(recipe, packages),
        recipe=recipe_digest(recipe.folder),
        packages={package.name: package.version for package in packages},
        kernel_version=release,
        files={KERNEL: record(image / KERNEL), INITRD: record(image / INITRD), DISK: record(image / DISK)},
        cmdline=recipe.keys.boot.cmdline,
        disk_format="qcow2",
        guest=recipe.guest,
    )
