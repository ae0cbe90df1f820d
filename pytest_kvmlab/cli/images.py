"""`kvmlab image`: the images that guests boot from."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pytest_kvmlab.cli import backups, pruning
from pytest_kvmlab.cli.output import AsJson, print_json, print_table, progress, size
from pytest_kvmlab.cli.rescue import open_shell
from pytest_kvmlab.cli.sheet import as_document, differences, facts, needs
from pytest_kvmlab.cli.shelf import Name, Replace, StoreFolder, age, built_at, described, find, size_of
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.build import build, ensure
from pytest_kvmlab.lab.builder_run import BuilderRuns
from pytest_kvmlab.lab.difference import difference
from pytest_kvmlab.lab.importing import ImportRequest, import_image
from pytest_kvmlab.lab.recipes import find_recipe, recipes
from pytest_kvmlab.lab.run import open_store
from pytest_kvmlab.lab.store import OtherVersionsImage, Store
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.guest_file import load_guest_file
from pytest_kvmlab.spec.kernel import ITS_OWN, split_image
from pytest_kvmlab.spec.manifest import LOCK
from pytest_kvmlab.spec.options import resolve_options
from pytest_kvmlab.spec.quantity import parse_size

app = typer.Typer(help="Build, import, verify, copy and remove images.", no_args_is_help=True)

app.command("copy")(backups.copy_image)
app.command("export")(backups.export)
app.command("restore")(backups.restore)
app.command("prune")(pruning.prune_store)
app.command("remove")(pruning.remove_images)


@app.command("list")
def list_images(store: StoreFolder = None, as_json: AsJson = False) -> None:
    """List the images that are built, and the recipes that can be."""
    shelf = open_store(store)
    names = sorted({*shelf.names(), *recipes()})
    if as_json:
        print_json([_listed(name, shelf) for name in names])
    else:
        columns = ("NAME", "STATE", "KIND", "SIZE", "AGE", "SHA-256", "FOLDER")
        print_table(columns, [_row(name, shelf) for name in names])


def _listed(name: str, store: Store) -> dict[str, Any]:
    try:
        return described(name, store.find(name))
    except OtherVersionsImage as error:
        return {**described(name, None), "other_version": error.message}
    except ImageError as error:
        return {**described(name, None), "damaged": error.message}


def _row(name: str, store: Store) -> tuple[str, ...]:
    try:
        image = store.find(name)
    except OtherVersionsImage:
        return name, "of another version", "", "", "", "", f"kvmlab image build {name}"
    except ImageError:
        return name, "damaged", "", "", "", "", f"kvmlab image show {name}"
    if image is None:
        return name, "not built", "", "", "", "", f"kvmlab image build {name}"
    told = image.manifest.kind, size(size_of(image)), age(built_at(image))
    return name, "built", *told, image.sha256[:16], str(image.folder)


@app.command("show")
def show_image(name: Name, store: StoreFolder = None, as_json: AsJson = False) -> None:
    """Tell all about an image: files, parent, packages, what its guests are like, and who needs it."""
    shelf = open_store(store)
    image = find(name, shelf)
    if as_json:
        print_json({**described(name, image), **needs(image, shelf), "manifest": as_document(image)})
    else:
        print_table(("", ""), [*facts(image, shelf)])


@app.command("diff")
def diff_images(
    first: Annotated[str, typer.Argument(help="An image.")],
    second: Annotated[str, typer.Argument(help="Another image.")],
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """List the packages, kernels, files and keys in which two images differ."""
    shelf = open_store(store)
    found = difference(find(first, shelf).manifest, find(second, shelf).manifest)
    if as_json:
        print_json(asdict(found))
    elif found:
        print_table(("", "", first, second), [*differences(found)])
    else:
        print(f"{first} and {second} are alike")


@app.command("build")
def build_image(
    recipe: Annotated[
        str,
        typer.Argument(
            help="The name of a recipe, the folder of one of your own, or an image and a kernel: X+6.12."
        ),
    ],
    store: StoreFolder = None,
    lock: Annotated[
        Path | None, typer.Option(help="Exact packages: an image.lock, as `kvmlab image lock` prints it.")
    ] = None,
    shell: Annotated[
        bool, typer.Option("--shell", help="Where setup.sh fails, open a shell in the half-built image.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build an image of the packages in its lock, or of the newest, unless exactly that is there."""
    other_kernel = split_image(recipe)[1] != ITS_OWN
    if other_kernel and lock is not None:
        raise ConfigError(
            f"{recipe} is not built from a lock: it is the image that there is, with another kernel",
            f"build {split_image(recipe)[0]} with --lock first, and {recipe} without",
        )
    options = resolve_options({"lab": True, "store": store}, os.environ, {})
    with progress(plain=shell) as show:
        shelf, guests = open_store(options.store), BuilderRuns(options, show)
        if other_kernel:
            image = ensure(recipe, shelf, guests=guests, progress=show)
        else:
            image = build(
                find_recipe(recipe),
                shelf,
                guests=guests,
                rescue=open_shell if shell else None,
                lock=lock,
                progress=show,
            )
    if as_json:
        print_json(described(image.name, image))
    else:
        print(f"{image.name}: {image.folder}")


@app.command("lock")
def print_lock(name: Name, store: StoreFolder = None) -> None:
    """Print the exact packages that an image was built of, for an image.lock in its recipe's folder."""
    image = find(name, open_store(store))
    lock = image.file(LOCK)
    if lock is None:
        raise ImageError(
            f"image '{name}' was not built of packages by itself", "ask for the image that it is from"
        )
    print(lock.read_text(encoding="utf-8"), end="")


@app.command("import")
def import_file(
    name: Annotated[str, typer.Argument(help="What guests will call the image.")],
    file: Annotated[Path, typer.Argument(help="A disk or disc, compressed or not, or a block device.")],
    *,
    sha256: Annotated[str | None, typer.Option(help="What the file's SHA-256 has to be.")] = None,
    guest: Annotated[
        Path | None,
        typer.Option(help="A TOML file whose table [guest] says how to log in, memory, readiness…"),
    ] = None,
    companions: Annotated[
        list[Path] | None,
        typer.Option("--with", help="A file that a qcow2 image stands on and may be read from; repeatable."),
    ] = None,
    max_size: Annotated[str, typer.Option(metavar="SIZE", help="How large the disk may be.")] = "256GiB",
    replace: Replace = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Bring a disk of your own into the store: qcow2, raw, VMDK, VDI, VHD, VHDX or ISO; it is only read."""
    keys = load_guest_file(guest) if guest else {}
    request = ImportRequest(name, file, sha256, keys, companions or (), _size(max_size), replace)
    with progress() as show:
        image = import_image(request, open_store(store), progress=show)
    if as_json:
        print_json(described(name, image))
    else:
        print(f"{name}: {image.folder}")


def _size(written: str) -> int:
    try:
        return parse_size(written)
    except ValueError as error:
        raise ConfigError(f"--max-size: {error}") from None


@app.command("verify")
def verify_images(
    names: Annotated[list[str] | None, typer.Argument(help="Images; if none is named, all.")] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare images with their manifests, byte by byte; the exit status is 1 if one is damaged."""
    shelf = open_store(store)
    with progress() as show:
        damages = {name: _damage(name, shelf, show) for name in names or shelf.names()}
    if as_json:
        print_json([{"name": name, "ok": not damage, "damage": damage} for name, damage in damages.items()])
    else:
        for name, damage in damages.items():
            print(f"{name}: {damage or 'as it was built'}")
    if any(damages.values()):
        raise typer.Exit(1)


def _damage(name: str, store: Store, show: Progress) -> str:
    """What is wrong with an image; nothing if it is as it was built."""
    try:
        image = find(name, store)
        with image.lock_shared():
            store.verify(image, show)
    except ImageError as error:
        return error.message
    return ""
