"""Images with another kernel than their own: `debian-12+6.12.117+deb12-amd64`, derived from `debian-12`."""

import shutil
from dataclasses import replace
from pathlib import Path

from pytest_kvmlab.drivers import debian, kernel
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.blueprint import Blueprint
from pytest_kvmlab.lab.debian_image import with_kernel_blueprint
from pytest_kvmlab.lab.initramfs_image import initramfs_blueprint
from pytest_kvmlab.lab.kernels import Kernel, fetch_kernel
from pytest_kvmlab.lab.recipes import recipes
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.kernel import PACKAGE, image_with, release_of
from pytest_kvmlab.spec.lock import parse_lock
from pytest_kvmlab.spec.manifest import LOCK, Manifest
from pytest_kvmlab.spec.recipe import DebianKeys, InitramfsKeys, Recipe, load_recipe


def kernel_blueprint(
    base: Image, other: Kernel, store: Store, no_recipe: Path, *, progress: Progress
) -> Blueprint:
    """Find out what an image with another kernel would be made of.

    Args:
        base: the image, locked until the new one is in its place.
        other: the kernel.
        store: where packages and images are.
        no_recipe: an empty folder.
        progress: told what is being done.

    Raises:
        ConfigError: an image of this kind cannot have another kernel.
    """
    match base.manifest.kind:
        case "debian":
            return _debian(base, other, store, no_recipe, progress)
        case "initramfs":
            return _initramfs(base, other, store, progress)
    raise ConfigError(
        f"the image '{base.name}' of kind '{base.manifest.kind}' cannot be given another kernel from outside",
        'upgrade it in the guest (guest.upgrade_kernel), or say kernel = "image" about its guests',
    )


def _debian(base: Image, other: Kernel, store: Store, no_recipe: Path, progress: Progress) -> Blueprint:
    """A system with one more package: the kernel that it had stays on the disk, as after an upgrade."""
    package = f"{PACKAGE}{other.release}"
    keys = DebianKeys.model_validate({"kind": "debian", "from": base.name, "packages": [package]})
    recipe = Recipe(image_with(base.name, other.name), no_recipe, keys, {})
    blueprint = with_kernel_blueprint(
        recipe, keys, base, store, release=other.release, locked=other.packages, progress=progress
    )

    def make(work: Path) -> Manifest:
        _fetch(other, base.manifest.suite, store, work, progress)
        _require_sound(other, store, work, progress)
        return blueprint.make(work)

    return Blueprint(blueprint.identity, make)


def _initramfs(base: Image, other: Kernel, store: Store, progress: Progress) -> Blueprint:
    """The same recipe and the same packages, but for the kernel."""
    recipe = _recipe_of(base)
    keys, lock = recipe.keys, base.file(LOCK)
    assert isinstance(keys, InitramfsKeys)  # noqa: S101  the image is of this kind
    assert lock  # noqa: S101  and such an image has one
    packages = parse_lock(lock.read_bytes(), source=str(lock))
    locked = (*(package for package in packages if release_of(package.name) is None), *other.packages)
    named = replace(recipe, name=image_with(base.name, other.name))
    return initramfs_blueprint(named, keys, store, locked=locked, any_kernel=True, progress=progress)


def _recipe_of(base: Image) -> Recipe:
    folder = recipes().get(base.name)
    if folder is None:
        raise ConfigError(
            f"the image '{base.name}' cannot be given another kernel: its recipe is not of this package",
            "name the kernel in its recipe, and build it again",
        )
    return load_recipe(folder)


def _fetch(other: Kernel, suite: str | None, store: Store, work: Path, progress: Progress) -> None:
    scratch = work / "downloads"
    scratch.mkdir()
    fetch_kernel(other, suite, store, scratch=scratch, progress=progress)


def _require_sound(other: Kernel, store: Store, work: Path, progress: Progress) -> None:
    """Look into the kernel's package before minutes of work: it may be somebody's own."""
    root, release = work / "kernel", other.release
    (package,) = (each for each in other.packages if release_of(each.name) == release)
    progress(f"looking into {package.name}", None)
    debian.unpack(debian.pooled(store.packages, package), root)
    image = root / "boot" / f"vmlinuz-{release}"
    if not image.exists():
        raise ImageError(f"the package {package.name} has no kernel {release}", looked_at=[image])
    kernel.require_guests_can_run_it(image.read_bytes(), kernel.modules_folder(root, release), release)
    shutil.rmtree(root)
