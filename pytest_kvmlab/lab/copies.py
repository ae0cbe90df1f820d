"""New images from what is there already: a copy of an image, and the disk of a guest that is off."""

import hashlib
import json
from pathlib import Path

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.recipes import recipe_digest, recipes
from pytest_kvmlab.lab.store import Image, Store, record
from pytest_kvmlab.lab.transfer import share
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.manifest import DISKS, LOCK, TREE, Manifest
from pytest_kvmlab.spec.recipe import load_recipe

_GUEST_DISK = DISKS["qcow2"]
_MOST_BETWEEN = 3  # disks between a guest of ours and its image: none, or a template's


def copy(source: Image, name: str, store: Store, *, replace: bool = False, progress: Progress) -> Image:
    """Give an image a second name, under which it stays as it is when the first one is built anew.

    The files of both are the same, as long as the file system has hard links: that takes no time and no room,
    and a disk that fails takes both. A backup is made by `pytest_kvmlab.lab.backup.export_image`.

    Args:
        source: the image.
        name: the copy's name.
        store: where both are.
        replace: also if another image has this name.
        progress: told what is being done.

    Returns:
        The copy.

    Raises:
        ImageError: the name is taken, or the store cannot be written to.
    """
    manifest = renamed(source, name)
    with store.building(name, waiting=lambda: progress(waiting(name), None)) as folder, source.lock_shared():
        check_name(manifest, store, replace=replace)
        image = folder / "image"
        image.mkdir()
        for file in manifest.files:
            share(source.folder / file, image / file)
        return store.publish(image, manifest)


def save_disk(disk: Path, name: str, store: Store, *, replace: bool = False, progress: Progress) -> Image:
    """Make an image of the disk of a guest that is off: its state becomes what other guests start from.

    Kernel, command line and keys are those of the guest's image. The new disk stands on no other.

    Args:
        disk: the guest's overlay.
        name: the new image's name.
        store: where the guest's image is, and where the new one goes.
        replace: also if another image has this name.
        progress: told what is being done.

    Returns:
        The new image.

    Raises:
        ImageError: the guest is still on, its image is not in the store, the name is taken, or the store
            cannot be written to.
    """
    base = _image_below(disk, store)
    with store.building(name, waiting=lambda: progress(waiting(name), None)) as folder, base.lock_shared():
        image = folder / "image"
        image.mkdir()
        progress(f"copying the disk of a guest of {base.name}", None)
        qemu_img.convert(disk, "qcow2", image / _GUEST_DISK, "qcow2")
        # Not the tree, the packages and the lock: the guest may have changed all of them.
        for file in base.manifest.files.keys() - {TREE, LOCK, *DISKS.values()}:
            share(base.folder / file, image / file)
        manifest = _of_guest(base, name, image)
        check_name(manifest, store, replace=replace)
        return store.publish(image, manifest)


def renamed(source: Image, name: str) -> Manifest:
    """What a copy of an image says about itself; it has no recipe, so that nothing builds it anew.

    Args:
        source: the image.
        name: the copy's name.
    """
    told = {"name": name, "recipe": None, "identity": derived("copy", name, source.sha256)}
    return Manifest.model_validate({**source.manifest.model_dump(), **told})


def derived(*inputs: str) -> str:
    """The identity of an image that was made of others by no recipe."""
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def check_name(manifest: Manifest, store: Store, *, replace: bool) -> None:
    """See that an image may have its name.

    Args:
        manifest: what it says about itself.
        store: where it goes.
        replace: an image that has the name already may lose it.

    Raises:
        ImageError: it may not.
    """
    name, recipe = manifest.name, recipes().get(manifest.name)
    if recipe and manifest.recipe != recipe_digest(load_recipe(recipe)):
        raise ImageError(
            f"'{name}' is the name of a recipe, which would soon take the place of this image",
            "choose another name",
            looked_at=[recipe],
        )
    if not replace and _other_image(manifest, store):
        raise ImageError(f"there is another image '{name}'", "choose another name, or say --replace")


def waiting(name: str) -> str:
    """The step in which somebody else builds an image of this name."""
    return f"waiting for another process that makes the image {name}"


def _other_image(manifest: Manifest, store: Store) -> bool:
    """Whether a sound image has the name; a damaged one is nobody's loss."""
    try:
        there = store.find(manifest.name)
    except ImageError:
        return False
    return there is not None and there.manifest.identity != manifest.identity


def _image_below(disk: Path, store: Store) -> Image:
    """The image that a disk stands on, be it by way of the disk of the guest that it is a clone of."""
    below = [disk]
    for _ in range(_MOST_BETWEEN):
        backing = qemu_img.info(below[-1], "qcow2").backing
        if backing is None:
            break
        if base := store.holder(Path(backing)):
            return base
        below.append(Path(backing))
    raise ImageError(
        f"the disk {disk} stands on no image of this store",
        "name the guest's store with --store; a guest of a file given by --kvm-image cannot be saved",
        looked_at=[*below[1:], store.root],
    )


def _of_guest(base: Image, name: str, image: Path) -> Manifest:
    files = {path.name: record(path) for path in sorted(image.iterdir())}
    told = {
        "name": name,
        "kind": "layer",
        "recipe": None,
        # A guest installs what it likes; only that of a root file system in memory stays as it was.
        "packages": base.manifest.packages if base.manifest.kind == "initramfs" else {},
        "files": files,
        "identity": derived("guest", name, base.sha256, files[_GUEST_DISK].sha256),
    }
    return Manifest.model_validate({**base.manifest.model_dump(), **told, "parent": None})
