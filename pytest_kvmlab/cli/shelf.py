"""What the commands about images share: which store, which image, and how one is described."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.recipes import recipes
from pytest_kvmlab.lab.shipped import shipped_labs
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.labfile import SUFFIX
from pytest_kvmlab.spec.names import nearest

StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store", envvar="KVMLAB_STORE", help="Where images live; if not given, the user's cache folder."
    ),
]
Name = Annotated[str, typer.Argument(help="The image's name.")]
Replace = Annotated[bool, typer.Option("--replace", help="Take the name from another image that has it.")]


def find(name: str, store: Store) -> Image:
    """An image that is there.

    Raises:
        ImageError: it is not, or it is incomplete.
    """
    if image := store.find(name):
        return image
    hint = f"kvmlab image build {name}" if name in recipes() else "see: kvmlab image list"
    near = "" if name in recipes() else nearest(name, [*store.names(), *recipes()])
    raise ImageError(f"image '{name}' is not built{near}", hint, looked_at=[store.root])


def lab_files() -> list[Path]:
    """The lab files that come with the package, and those in this folder and the ones above it."""
    here = Path.cwd()
    nearby = [file for folder in (here, *here.parents) for file in sorted(folder.glob(f"*{SUFFIX}"))]
    return [*sorted(shipped_labs().glob(f"*/*{SUFFIX}")), *nearby]


def described(name: str, image: Image | None) -> dict[str, Any]:
    """An image for a script; without one, a name that could be built."""
    if image is None:
        return {"name": name, "built": False, "kind": None, "size": None, "sha256": None, "folder": None}
    return {
        "name": name,
        "built": True,
        "kind": image.manifest.kind,
        "size": size_of(image),
        "built_at": built_at(image),
        "used_at": used_at(image),
        "sha256": image.sha256,
        "folder": str(image.folder),
    }


def size_of(image: Image) -> int:
    """The bytes of its files; those that it stands on are not its own."""
    return sum(record.size for record in image.manifest.files.values())


def built_at(image: Image) -> float:
    """When its folder was filled: seconds since 1970."""
    return image.folder.stat().st_mtime


def used_at(image: Image) -> float | None:
    """When somebody last began to use it: seconds since 1970; None if that is not known."""
    return image.lock_file.stat().st_mtime if image.lock_file.exists() else None


def age(moment: float) -> str:
    """How long ago something was, roughly: `3 days`, `20 min`."""
    passed = timedelta(seconds=max(0.0, time.time() - moment))
    if passed.days:
        return f"{passed.days} {'day' if passed.days == 1 else 'days'}"
    return f"{passed.seconds // 3600} h" if passed.seconds >= 3600 else f"{passed.seconds // 60} min"
