"""What a store can do without, and taking it away."""

import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab import locks
from pytest_kvmlab.lab.recipes import recipes
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.lab.template_shelf import Kept, Shelf
from pytest_kvmlab.spec.kernel import ITS_OWN, split_image
from pytest_kvmlab.spec.manifest import LOCK, MANIFEST, Manifest

DEFAULT_LIMIT = "40GiB"

_OVER_LIMIT = "the store is over its limit, and this was not used for the longest time"
_ROOM = "the store has room for it"
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_BLOCK = 512  # what `st_blocks` counts, whatever the file system's own blocks are (inode(7))


@dataclass(frozen=True)
class Item:
    """A part of a store, and what becomes of it.

    Attributes:
        kind: `image`, `template`, `package` or `leftover`.
        name: what people call it.
        path: its file or folder.
        size: the bytes of disk that it takes; those that it shares with another image count for both.
        why: the reason.
    """

    kind: str
    name: str
    path: Path
    size: int
    why: str


@dataclass(frozen=True)
class Pruning:
    """What is to be done to a store.

    Attributes:
        removed: what goes.
        kept: the images and templates that stay.
        before: the bytes of disk that the store takes now.
        after: the bytes that it takes then.
        limit: the bytes that it should take at most.
    """

    removed: tuple[Item, ...]
    kept: tuple[Item, ...]
    before: int
    after: int
    limit: int


def plan_pruning(store: Store, named_by: Mapping[str, Path], *, limit: int) -> Pruning:
    """Decide what a store can do without; nothing is removed.

    Always: images that no name leads to, templates whose image is gone, packages that no lock lists, what
    dead builders left. While the store is over its limit: templates, then named images, first the one that
    was not used for the longest time. Never: an image that somebody uses, that a lab names, that another
    image grew from, or that no recipe builds again.

    Args:
        store: the store.
        named_by: the images that labs name, and the lab file of each: these stay. A plus after a name is for
            all that were made of that image for other kernels.
        limit: bytes.

    Returns:
        What to do.

    Raises:
        ImageError: the store's file system has no locks.
    """
    shelf = [_Shelved.of(folder, store) for folder in store.folders()]
    unneeded = set(store.unneeded())
    gone = [(image, "no name leads to it") for image in shelf if image.folder in unneeded and image.free]
    left = [image for image in shelf if image not in [image for image, _ in gone]]
    templates = _Templates.of(store, [image.folder for image, _ in gone])
    while _disk_use(_parts(left, templates, store)) > limit:
        if templates.left:
            templates.gone.append((templates.left.pop(0), _OVER_LIMIT))
        elif image := _least_recently_used(left, named_by):
            gone.append((image, _OVER_LIMIT))
            left.remove(image)
        else:
            break
    images = [image.item(why) for image, why in gone]
    packages = [_item("package", path, "no lock lists it") for path in _unlisted_packages(left, store)]
    leftovers = [_item("leftover", path, "its builder is dead") for path in _leftovers(store)]
    return Pruning(
        removed=(*images, *(templates.item(*each) for each in templates.gone), *packages, *leftovers),
        kept=(
            *(image.item(_why_kept(image, left, named_by) or _ROOM) for image in left),
            *(templates.item(template, _ROOM) for template in templates.left),
        ),
        before=_disk_use(store.root / part for part in ("images", "templates", "packages", "building")),
        after=_disk_use(_parts(left, templates, store)),
        limit=limit,
    )


def prune(store: Store, plan: Pruning) -> tuple[Item, ...]:
    """Remove what a plan says.

    Args:
        store: the store.
        plan: what `plan_pruning` decided.

    Returns:
        What is gone; an image that somebody began to use meanwhile is not.

    Raises:
        ImageError: the store cannot be written to.
    """
    return tuple(item for item in plan.removed if _remove(item, store))


def remove_useless_templates(store: Store) -> None:
    """Remove kept templates of which nothing can be started any more, as when their image is gone.

    Raises:
        ImageError: the store cannot be written to.
    """
    templates = _Templates.of(store, ())
    for each in templates.gone:
        _remove(templates.item(*each), store)


@dataclass(frozen=True)
class _Shelved:
    """An image as pruning sees it; `free` means that nobody uses it, as far as this process can tell."""

    folder: Path
    names: tuple[str, ...]
    manifest: Manifest | None
    used: float
    free: bool

    @classmethod
    def of(cls, folder: Path, store: Store) -> "_Shelved":
        lock = folder.with_name(f"{folder.name}.lock")
        used = lock.stat().st_mtime if lock.exists() else folder.stat().st_mtime
        return cls(
            folder, store.names_of(folder), _manifest(folder, store), used, store.in_use(folder) is False
        )

    def item(self, why: str) -> Item:
        return _item("image", self.folder, why, name=", ".join(self.names) or self.folder.name[:16])


@dataclass(frozen=True)
class _Templates:
    """Templates that stay, the least recently used first, and those that go, each with the reason."""

    store: Store
    left: list[Kept]
    gone: list[tuple[Kept, str]]

    @classmethod
    def of(cls, store: Store, gone: Collection[Path]) -> "_Templates":
        """As they are once some images are gone."""
        seen = [(each, _why_useless(each, gone)) for each in Shelf(store.templates).kept()]
        left = [each for each, why in seen if not why]
        return cls(store, left, [(each, why) for each, why in seen if why])

    def item(self, template: Kept, why: str) -> Item:
        """A template, named by the images that it stands on."""
        folders = dict.fromkeys(file.parent for file in template.stands_on or ())
        names = [name for folder in folders for name in self.store.names_of(folder)]
        return _item("template", template.folder, why, name=", ".join(names) or template.folder.name[:16])


def _why_useless(template: Kept, gone: Collection[Path]) -> str:
    """Why nothing can be started from a template any more, if that is so."""
    if template.stands_on is None:
        return "it is damaged"
    folders = {folder.resolve() for folder in gone}
    there = all(file.exists() and file.resolve().parent not in folders for file in template.stands_on)
    return "" if there else "its image is gone"


def _least_recently_used(images: Iterable[_Shelved], named_by: Mapping[str, Path]) -> _Shelved | None:
    everything = list(images)
    loose = [image for image in everything if not _why_kept(image, everything, named_by)]
    return min(loose, key=lambda image: image.used, default=None)


def _with_any_kernel(image: str) -> str:
    name, kernel = split_image(image)
    return name if kernel == ITS_OWN else f"{name}+"


def _why_kept(image: _Shelved, images: Iterable[_Shelved], named_by: Mapping[str, Path]) -> str:
    """The reason for which an image stays even in a store over its limit, if there is one."""
    if not image.free:
        return "guests use it, or it cannot be locked"
    names = [name for each in image.names for name in (each, _with_any_kernel(each))]
    if lab := next((named_by[name] for name in names if name in named_by), None):
        return f"the lab {lab} names it"
    if child := next((other for other in images if _grew_from(other, image)), None):
        return f"{', '.join(child.names) or child.folder.name[:16]} grew from it"
    if not recipes().keys() & {split_image(name)[0] for name in image.names}:
        return "no recipe builds it again; only kvmlab image remove takes it away"
    return ""


def _grew_from(other: _Shelved, image: _Shelved) -> bool:
    return other.manifest is not None and other.manifest.parent == image.folder.name


def _manifest(folder: Path, store: Store) -> Manifest | None:
    with suppress(ImageError):
        image = store.holder(folder / MANIFEST)
        return image.manifest if image else None
    return None


def _unlisted_packages(images: Iterable[_Shelved], store: Store) -> list[Path]:
    listed = _listed(images)
    return [] if _somebody_builds(store) else [path for path in _packages(store) if path.stem not in listed]


def _listed(images: Iterable[_Shelved]) -> set[str]:
    """The digests in the locks of images and recipes, in whatever form a lock has them."""
    files = [image.folder / LOCK for image in images] + [folder / LOCK for folder in recipes().values()]
    texts = (file.read_text(errors="replace") for file in files if file.is_file())
    return {digest for text in texts for digest in _DIGEST.findall(text)}


def _packages(store: Store) -> list[Path]:
    return sorted((store.root / "packages").glob("*.deb"))


def _parts(images: Iterable[_Shelved], templates: _Templates, store: Store) -> list[Path]:
    shelved = list(images)
    listed = _listed(shelved)
    packages = [path for path in _packages(store) if path.stem in listed]
    return [
        *(image.folder for image in shelved),
        *(template.folder for template in templates.left),
        *packages,
    ]


def _leftovers(store: Store) -> list[Path]:
    """What builders and removers did not take away; a living one holds its lock."""
    folders = [path for path in sorted((store.root / "building").glob("*")) if path.is_dir()]
    dead = [path for path in folders if _is_free(_lock_of(path, store))]
    return [*dead, *Shelf(store.templates).halves()]


def _lock_of(leftover: Path, store: Store) -> Path:
    """A folder of a hidden name was an image, and its remover holds the image's lock."""
    if leftover.name.startswith("."):
        return store.root / "images" / f"{leftover.name[1:]}.lock"
    return leftover.with_name(f"{leftover.name}.lock")


def _is_free(lock: Path) -> bool:
    with suppress(OSError), locks.free(lock) as ours:
        return ours
    return False


def _somebody_builds(store: Store) -> bool:
    """A builder fetches packages before there is a lock that lists them."""
    return not all(map(_is_free, sorted((store.root / "building").glob("*.lock"))))


def _remove(item: Item, store: Store) -> bool:
    try:
        match item.kind:
            case "image":
                return store.remove(item.path, named=True)
            case "template":
                return _remove_template(item.path, store)
            case "package":
                return _remove_package(item.path, store)
            case _:
                return _remove_leftover(item.path, store)
    except OSError as error:
        raise ImageError(f"{item.path} cannot be removed: {error.strerror}") from error


def _remove_package(path: Path, store: Store) -> bool:
    if _somebody_builds(store):
        return False
    path.unlink(missing_ok=True)
    return True


def _remove_template(path: Path, store: Store) -> bool:
    Shelf(store.templates).remove(path)
    return True


def _remove_leftover(path: Path, store: Store) -> bool:
    if path.parent == store.templates:
        return _remove_template(path, store)
    with locks.free(_lock_of(path, store)) as ours:
        if ours:
            shutil.rmtree(path)
        return ours


def _item(kind: str, path: Path, why: str, *, name: str = "") -> Item:
    return Item(kind, name or path.name, path, _disk_use([path]), why)


def _disk_use(places: Iterable[Path]) -> int:
    """The bytes of disk that files take: holes take none, and a file with several names counts once."""
    files = {}
    for place in places:
        for path in [place, *place.rglob("*")] if place.exists() else []:
            status = path.lstat()
            files[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK
    return sum(files.values())
