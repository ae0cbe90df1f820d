"""`kvmlab image prune` and `remove`: what is taken away, what stays, and why."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pytest_kvmlab.cli.output import AsJson, print_json, print_table, size
from pytest_kvmlab.cli.shelf import StoreFolder, find, lab_files
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.pruning import (
    DEFAULT_LIMIT,
    Item,
    Pruning,
    plan_pruning,
    prune,
    remove_useless_templates,
)
from pytest_kvmlab.lab.run import open_store
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.kernel import ITS_OWN, split_image
from pytest_kvmlab.spec.labfile import load_lab
from pytest_kvmlab.spec.quantity import parse_size


def prune_store(
    *,
    limit: Annotated[
        str, typer.Option(envvar="KVMLAB_STORE_LIMIT", metavar="SIZE", help="What the store may take.")
    ] = DEFAULT_LIMIT,
    keep_lab: Annotated[
        list[Path] | None,
        typer.Option(help="A lab file whose images stay; those here and above count anyway. Repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Remove what nothing needs, and keep the store under a limit."""
    shelf = open_store(store)
    named_by = _images_of([*lab_files(), *(keep_lab or [])])
    plan = plan_pruning(shelf, named_by, limit=_bytes(limit))
    removed = plan.removed if dry_run else prune(shelf, plan)
    if as_json:
        print_json(_as_document(plan, removed))
    else:
        _show(plan, removed, "would go" if dry_run else "removed")


def remove_images(
    names: Annotated[list[str], typer.Argument(help="Images.")], *, store: StoreFolder = None
) -> None:
    """Remove images, also those that no recipe builds again; not one that is in use or needed by another."""
    shelf = open_store(store)
    for name in names:
        _remove(name, shelf)
        remove_useless_templates(shelf)
        print(f"{name}: removed")


def _remove(name: str, store: Store) -> None:
    folder = store.folder_of(name) or find(name, store).folder
    if not store.remove(folder, named=True):
        raise ImageError(
            f"image '{name}' stays: guests use it, or another image stands on it",
            f"see: kvmlab image show {name}",
        )


def _images_of(labs: Iterable[Path]) -> dict[str, Path]:
    return {name: lab for lab in labs for guest in load_lab(lab).guests.values() for name in _names(guest)}


def _names(guest: GuestKeys) -> Iterator[str]:
    """The image of a guest, and, if it names a kernel, all that were made of that image for one."""
    name, kernel = split_image(str(guest.image))
    yield str(guest.image)
    if guest.kernel or kernel != ITS_OWN:
        yield f"{name}+"


def _bytes(written: str) -> int:
    try:
        return parse_size(written)
    except ValueError as error:
        raise ConfigError(f"--limit: {error}") from None


def _as_document(plan: Pruning, removed: tuple[Item, ...]) -> dict[str, Any]:
    return {
        "removed": [_item(item) for item in removed],
        "kept": [_item(item) for item in plan.kept],
        "before": plan.before,
        "after": plan.after,
        "limit": plan.limit,
    }


def _item(item: Item) -> dict[str, Any]:
    return {**asdict(item), "path": str(item.path)}


def _show(plan: Pruning, removed: tuple[Item, ...], done: str) -> None:
    rows = [(done, item.kind, item.name, size(item.size), item.why) for item in removed]
    rows += [("stays", item.kind, item.name, size(item.size), item.why) for item in plan.kept]
    if rows:
        print_table(("", "KIND", "NAME", "SIZE", "WHY"), rows)
    print(f"{size(plan.before)} before, {size(plan.after)} after, limit {size(plan.limit)}")
    if plan.after > plan.limit:
        print("over the limit, but everything left is needed")
