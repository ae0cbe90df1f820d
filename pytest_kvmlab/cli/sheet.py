"""One image on a sheet of its own, and two side by side."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_kvmlab.cli.output import size
from pytest_kvmlab.cli.shelf import age, built_at, lab_files, used_at
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.difference import Difference
from pytest_kvmlab.lab.recipes import recipes
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.labfile import load_lab
from pytest_kvmlab.spec.recipe import load_recipe

Row = tuple[str, str]


def as_document(image: Image) -> dict[str, Any]:
    """The manifest, for a script."""
    return image.manifest.model_dump(mode="json")


def needs(image: Image, store: Store) -> dict[str, Any]:
    """Who needs an image: guests now, other images always, recipes and labs sometime."""
    identity = image.manifest.identity
    return {
        "in_use": store.in_use(image.folder),
        "children": [other.name for other in store.sound() if other.manifest.parent == identity],
        "recipes": [name for name, folder in recipes().items() if load_recipe(folder).origin == image.name],
        "labs": [str(file) for file in lab_files() if image.name in _images_of(file)],
    }


def _images_of(lab: Path) -> set[str | None]:
    """The images that a lab names; none of a lab file with mistakes, which is another command's affair."""
    with suppress(ConfigError):
        return {guest.image for guest in load_lab(lab).guests.values()}
    return set()


def facts(image: Image, store: Store) -> Iterator[Row]:
    """All about an image, for people."""
    manifest, needed = image.manifest, needs(image, store)
    yield "name", image.name
    yield "kind", manifest.kind
    yield "SHA-256", image.sha256
    yield "folder", str(image.folder)
    yield "built", f"{age(built_at(image))} ago"
    if used := used_at(image):
        yield "last used", f"{age(used)} ago"
    for name, record in manifest.files.items():
        yield "file", f"{name}  {size(record.size)}  {record.sha256}"
    if manifest.parent:
        yield (
            "grew from",
            " ".join([*store.names_of(store.root / "images" / manifest.parent), manifest.parent]),
        )
    yield "kernel", manifest.kernel_version or "unknown"
    yield "packages", str(len(manifest.packages))
    for key, value in manifest.guest.items():
        yield f"guest.{key}", json.dumps(value)
    yield "in use", {True: "yes", False: "no", None: "unknown"}[needed["in_use"]]
    yield "needed by", ", ".join(needed["children"]) or "no other image"
    yield "recipes", ", ".join(needed["recipes"]) or "none is from it"
    for lab in needed["labs"]:
        yield "lab", lab


def differences(found: Difference) -> Iterator[tuple[str, ...]]:
    """What differs between two images: kind, name, and how it is in each."""
    if found.kernel:
        yield "kernel", "", *(version or "unknown" for version in found.kernel)
    for name, version in found.removed.items():
        yield "package", name, version, "-"
    for name, version in found.added.items():
        yield "package", name, "-", version
    for name, versions in found.changed.items():
        yield "package", name, *versions
    for name, sizes in found.files.items():
        yield "file", name, *("-" if each is None else size(each) for each in sizes)
    for name, values in found.guest.items():
        yield "guest", name, *("-" if each is None else json.dumps(each) for each in values)
