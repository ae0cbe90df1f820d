"""`kvmlab image copy`, `export` and `restore`: images from images."""

from pathlib import Path
from typing import Annotated

import typer

from pytest_kvmlab.cli.labs import kept_guest
from pytest_kvmlab.cli.output import AsJson, print_json, progress, size
from pytest_kvmlab.cli.shelf import Name, Replace, StoreFolder, described, find
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.backup import export_image, restore_image
from pytest_kvmlab.lab.copies import copy, save_disk
from pytest_kvmlab.lab.kept import disk_of
from pytest_kvmlab.lab.run import open_store
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.spec.names import check_image_name


def copy_image(
    source: Annotated[str, typer.Argument(help="An image; or, with --from-guest, LAB/GUEST.")],
    name: Annotated[str, typer.Argument(help="The copy's name.")],
    *,
    from_guest: Annotated[
        bool, typer.Option("--from-guest", help="Copy the disk of a kept guest that is off.")
    ] = False,
    replace: Replace = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Copy an image, at once and without taking room; or make one of the disk of a kept guest that is off."""
    shelf, name = open_store(store), _checked(name)
    with progress() as show:
        if from_guest:
            image = save_disk(_disk_of(source), name, shelf, replace=replace, progress=show)
        else:
            image = copy(find(source, shelf), name, shelf, replace=replace, progress=show)
    _tell(image, as_json=as_json)


def export(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The file to write, such as wiki.tar.gz.")],
    *,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write an image into one compressed file, with its manifest and hashes."""
    image = find(name, open_store(store))
    with progress() as show:
        export_image(image, file, progress=show)
    written = file.stat().st_size
    if as_json:
        print_json({"name": name, "sha256": image.sha256, "file": str(file), "size": written})
    else:
        print(f"{file}: {size(written)}")


def restore(
    file: Annotated[Path, typer.Argument(help="A file that kvmlab image export has written.")],
    *,
    name: Annotated[str | None, typer.Option(help="What to call the image, if not as before.")] = None,
    replace: Replace = False,
    trusted: Annotated[
        bool,
        typer.Option(
            "--trusted", help="Its guests may use files of this machine that it names: keys, disks."
        ),
    ] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Put an exported image back, after comparing each of its files with its hash."""
    called = name if name is None else _checked(name)
    with progress() as show:
        shelf = open_store(store)
        image = restore_image(file, shelf, name=called, replace=replace, trusted=trusted, progress=show)
    _tell(image, as_json=as_json)


def _checked(name: str) -> str:
    try:
        return check_image_name(name)
    except ValueError as error:
        raise ConfigError(f"{name!r} cannot name an image: {error}") from None


def _disk_of(guest: str) -> Path:
    lab, slash, name = guest.rpartition("/")
    if not slash:
        raise ConfigError(f"{guest!r} is no LAB/GUEST", "kvmlab ps lists the runs that kept guests")
    _, folder = kept_guest(lab, name)
    return disk_of(folder)


def _tell(image: Image, *, as_json: bool) -> None:
    if as_json:
        print_json(described(image.name, image))
    else:
        print(f"{image.name}: {image.folder}")
