"""`kvmlab image`: the images that guests boot from."""

from pathlib import Path
from typing import Annotated

import typer

from pytest_kvmlab.cli.output import AsJson, print_json, print_table, progress
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.build import build, recipes
from pytest_kvmlab.lab.run import open_store
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.names import nearest

app = typer.Typer(help="List, build and verify images.", no_args_is_help=True)

StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store", envvar="KVMLAB_STORE", help="Where images live; if not given, the user's cache folder."
    ),
]
Name = Annotated[str, typer.Argument(help="The image's name.")]


@app.command("list")
def list_images(store: StoreFolder = None, as_json: AsJson = False) -> None:
    """List the images that are built, and the recipes that can be."""
    images = {image.name: image for image in open_store(store).images()}
    names = sorted(images.keys() | recipes().keys())
    if as_json:
        print_json([_as_document(name, images.get(name)) for name in names])
    else:
        print_table(("NAME", "STATE", "SHA-256", "FOLDER"), [_row(name, images.get(name)) for name in names])


def _as_document(name: str, image: Image | None) -> dict[str, object]:
    return {
        "name": name,
        "built": image is not None,
        "sha256": image.sha256 if image else None,
        "folder": str(image.folder) if image else None,
    }


def _row(name: str, image: Image | None) -> tuple[str, str, str, str]:
    if image is None:
        return name, "not built", "", f"kvmlab image build {name}"
    return name, "built", image.sha256[:16], str(image.folder)


@app.command("build")
def build_image(name: Name, store: StoreFolder = None, as_json: AsJson = False) -> None:
    """Build an image from its recipe, of the newest packages; nothing is done if exactly that is there."""
    folders = recipes()
    if name not in folders:
        raise ImageError(
            f"there is no recipe '{name}'{nearest(name, folders)}", f"known recipes: {', '.join(folders)}"
        )
    with progress() as show:
        image = build(folders[name], open_store(store), progress=show)
    if as_json:
        print_json(_as_document(name, image))
    else:
        print(f"{name}: {image.folder}")


@app.command("verify")
def verify_images(
    names: Annotated[list[str] | None, typer.Argument(help="Images; if none is named, all.")] = None,
    store: StoreFolder = None,
) -> None:
    """Compare images with their manifests, byte by byte; the exit status is 1 if one is damaged."""
    shelf = open_store(store)
    for image in [_find(name, shelf) for name in names] if names else shelf.images():
        shelf.verify(image)
        print(f"{image.name}: as it was built ({image.sha256[:16]})")


def _find(name: str, store: Store) -> Image:
    if image := store.find(name):
        return image
    raise ImageError(f"image '{name}' is not built", f"kvmlab image build {name}", looked_at=[store.root])
