"""Where images live: read-only, addressed by what they were made from, named by links.

::

    ROOT/images/IDENTITY/     manifest.json and the files that it lists: complete, and never changed
    ROOT/images/IDENTITY.lock held by those who use the image; its time is when one of them began to
    ROOT/names/NAME           a link to the image that has this name now
    ROOT/building/NAME/       an image that is being built, or was when its builder died
    ROOT/building/NAME.lock   held by the builder

Everything becomes visible by a rename, and the locks are the kind that holds on NFS, so that the machines
that mount one file server can share a store.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab import locks
from pytest_kvmlab.lab.transfer import Meter, pour
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.guest import DiskFormat
from pytest_kvmlab.spec.manifest import DISKS, MANIFEST, FileRecord, Manifest, OtherVersion, parse_manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class OtherVersionsImage(ImageError):
    """An image that is whole, but that another version of this package made."""


def _unwatched(_step: str, _share: float | None) -> None:
    pass


@dataclass(frozen=True)
class Image:
    """An image of the store.

    Attributes:
        folder: where its files are.
        manifest: what it says about itself.
        sha256: hexadecimal digest of the manifest, and so of everything that the image is.
        parent: the image whose disk its own stands on, if it does.
    """

    folder: Path
    manifest: Manifest
    sha256: str
    parent: "Image | None" = None

    @property
    def name(self) -> str:
        """What guests call it."""
        return self.manifest.name

    @property
    def disk_format(self) -> DiskFormat | None:
        """The format of its own disk, if it has one."""
        return next((name for name, file in DISKS.items() if file in self.manifest.files), None)

    @property
    def disk(self) -> Path | None:
        """Its own disk, if it has one."""
        return self.folder / DISKS[self.disk_format] if self.disk_format else None

    def file(self, name: str) -> Path | None:
        """Where one of its files is.

        Args:
            name: as in the manifest: `vmlinux`, `initrd`, `cdrom.iso`, `root.tar`, `image.lock`.

        Returns:
            The path, or None if the image has no such file.
        """
        return self.folder / name if name in self.manifest.files else None

    @property
    def lock_file(self) -> Path:
        """What is locked by those who use the image, and dated when one of them begins to."""
        return _lock_file(self.folder)

    @contextmanager
    def lock_shared(self) -> Iterator[None]:
        """Keep the image from being removed while guests use it; a store that is read-only will do.

        Raises:
            ImageError: it has already been removed, or the store's file system has no locks.
        """
        with ExitStack() as held:
            for image in self.lineage():
                held.enter_context(_in_use(image))
            yield

    def lineage(self) -> Iterator["Image"]:
        """The image, and the images whose disks its own stands on, the nearest first."""
        yield self
        if self.parent:
            yield from self.parent.lineage()


class Store:
    """The images below one folder; several processes may use it at once.

    Args:
        root: the folder, made when the first image is built.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def packages(self) -> Path:
        """The folder of the packages that images were built from, each as `SHA256.deb`."""
        return self.root / "packages"

    @property
    def templates(self) -> Path:
        """The folder of templates that are kept for later runs."""
        return self.root / "templates"

    def names(self) -> tuple[str, ...]:
        """The names that lead to images, sorted; what they lead to may be damaged."""
        return tuple(path.name for path in _folder_content(self.root / "names"))

    def images(self) -> tuple[Image, ...]:
        """The named images, sorted by name.

        Raises:
            ImageError: one of them is incomplete.
        """
        return tuple(image for image in map(self.find, self.names()) if image)

    def sound(self) -> tuple[Image, ...]:
        """The named images that are complete, sorted by name; others are passed by."""
        found: list[Image] = []
        for name in self.names():
            with suppress(ImageError):
                found += filter(None, [self.find(name)])
        return tuple(found)

    def find(self, name: str) -> Image | None:
        """Look an image up.

        Args:
            name: what guests call it.

        Returns:
            The image, or None if there is none of that name.

        Raises:
            OtherVersionsImage: it is there, but this version cannot read it.
            ImageError: it is there but incomplete; only sizes are looked at, `verify` looks at content.
        """
        folder = self.folder_of(name)
        return _read_image(folder) if folder else None

    def folders(self) -> tuple[Path, ...]:
        """The folders of all images, of those that no name leads to as well."""
        return tuple(path for path in _folder_content(self.root / "images") if path.is_dir())

    def holder(self, file: Path) -> Image | None:
        """The image that a file is of.

        Args:
            file: any file.

        Returns:
            The image, or None if the file is of no image of this store.

        Raises:
            ImageError: the image is incomplete.
        """
        folder = file.resolve().parent
        return _read_image(folder) if folder.parent == (self.root / "images").resolve() else None

    def folder_of(self, name: str) -> Path | None:
        """Where a name leads, even if the image there is damaged.

        Args:
            name: what guests call the image.
        """
        link = self.root / "names" / name
        return link.resolve() if _NAME.fullmatch(name) and link.exists() else None

    def verify(self, image: Image, progress: Progress = _unwatched) -> None:
        """Compare every file of an image with its manifest.

        Args:
            image: an image of this store.
            progress: told how far it is.

        Raises:
            ImageError: a file is missing or was changed; the message names it.
        """
        files = _read_manifest(image.folder).files
        meter = Meter(f"reading {image.name}", sum(record.size for record in files.values()), progress)
        for name, record in files.items():
            if _digest(image.folder / name, record.size, meter) != record.sha256:
                raise _damaged(image.folder / name, "its content was changed")

    def intact(self, identity: str) -> Image | None:
        """Get an image by what it was made from.

        Args:
            identity: hexadecimal digest of recipe, packages and builder.

        Returns:
            The verified image, or None if it is missing or damaged.
        """
        try:
            image = _read_image(self.root / "images" / identity)
            self.verify(image)
        except ImageError:
            return None
        return image

    @contextmanager
    def building(self, name: str, *, waiting: Callable[[], None]) -> Iterator[Path]:
        """Be the only one who builds an image.

        What a builder that died has left behind is removed first.

        Args:
            name: the image's name.
            waiting: called once if another process is building it now.

        Yields:
            An empty folder on the store's file system, removed at the end.

        Raises:
            ImageError: the store cannot be written to.
        """
        with self._written_to():
            places = [self.root / place for place in ("images", "names", "building", "packages")]
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
            folder = self.root / "building" / name
        with self._written_to(), locks.exclusive(folder.with_name(f"{name}.lock"), waiting=waiting):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, manifest: Manifest) -> Image:
        """Move a complete image into place and give it its name.

        Args:
            folder: the files of the image, inside the folder that `building` gave.
            manifest: what it says about itself.

        Returns:
            The image at its final place.

        Raises:
            ImageError: the store cannot be written to, or guests use a damaged image of the same identity.
        """
        place = self.root / "images" / manifest.identity
        # Locked until it has its name: a nameless image that nobody uses may be removed at any time.
        with self._written_to(), locks.free(_lock_file(place)) as ours:
            if not ours:
                raise ImageError(f"the image {place} is in use by guests", "end them, then try again")
            if manifest.has_password:
                # The disk has its hash, too. For the owner and the store's group, which may be inherited.
                folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~0o007)
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            for file in folder.iterdir():
                file.chmod(0o444)
            self._put_away(place)
            folder.rename(place)
            image = _read_image(place)
            self._link(image)
        self._remove_unneeded()
        return image

    def name(self, image: Image) -> None:
        """Let an image be found by its name, and remove images that no name leads to and no guest uses.

        Args:
            image: an image of this store, while its builder's lock is held.

        Raises:
            ImageError: the store cannot be written to.
        """
        with image.lock_shared(), self._written_to():
            self._link(image)
        self._remove_unneeded()

    def unneeded(self, *, without: Collection[str] = ()) -> tuple[Path, ...]:
        """The folders of images that no name leads to, nor to an image whose disk stands on theirs.

        Args:
            without: names that do not count.
        """
        names = [self.root / "names" / name for name in self.names() if name not in without]
        needed = {folder for name in names for folder in _folders_below(name.resolve())}
        return tuple(folder for folder in self.folders() if folder.resolve() not in needed)

    def names_of(self, folder: Path) -> tuple[str, ...]:
        """The names that lead to an image.

        Args:
            folder: the image's.
        """
        links = self.root / "names"
        return tuple(name for name in self.names() if (links / name).resolve() == folder.resolve())

    def in_use(self, folder: Path) -> bool | None:
        """Whether somebody uses an image now.

        Args:
            folder: the image's.

        Returns:
            The answer, or None if this process may not lock it: the store is read-only, or another user's.
        """
        try:
            with locks.free(_lock_file(folder)) as ours:
                return not ours
        except OSError:
            return None

    def remove(self, folder: Path, *, named: bool = False) -> bool:
        """Remove an image, unless somebody uses or rebuilds it now, or it is needed by others.

        Args:
            folder: the image's.
            named: also if names lead to it; they go with it.

        Returns:
            Whether it is gone.

        Raises:
            ImageError: the store cannot be written to.
        """
        with self._written_to(), ExitStack() as held:
            (self.root / "building").mkdir(exist_ok=True)
            names = self.names_of(folder) if named else ()
            builders = [self.root / "building" / f"{name}.lock" for name in names]
            if not all(held.enter_context(locks.free(lock)) for lock in [*builders, _lock_file(folder)]):
                return False
            if folder.resolve() not in map(
                Path.resolve, self.unneeded(without=names)
            ):  # asked only now: nothing changes under the lock
                return False
            for name in names:
                (self.root / "names" / name).unlink()
            self._put_away(folder)
            return True

    def _link(self, image: Image) -> None:
        link = self.root / "building" / image.name / "name"
        link.symlink_to(Path("..", "images", image.folder.name))
        link.rename(self.root / "names" / image.name)

    def _remove_unneeded(self) -> None:
        """Those that guests use, or that are another user's, stay; the next build asks again."""
        for folder in self.unneeded():
            with suppress(ImageError):
                self.remove(folder)

    def _put_away(self, folder: Path) -> None:
        """Remove an image that is locked here; moved aside first, so that nobody sees half of one."""
        aside = self.root / "building" / f".{folder.name}"
        shutil.rmtree(aside, ignore_errors=True)  # left by somebody who was killed right here
        if folder.exists():
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def _written_to(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "free some space, or" if full else "make it writable, or"
            raise ImageError(
                f"the image store cannot be written to: {error.strerror}",
                f"{hint} choose another folder with --kvm-store",
                looked_at=[error.filename or self.root],
            ) from error


def record(file: Path) -> FileRecord:
    """Say what a file is now, for a manifest.

    Args:
        file: a file of an image that is being built.

    Returns:
        Its digest and size.
    """
    return FileRecord(sha256=_sha256(file), size=file.stat().st_size)


def _read_image(folder: Path) -> Image:
    manifest = _read_manifest(folder)
    for name, expected in manifest.files.items():
        if _size(folder / name) != expected.size:
            raise _damaged(
                folder / name, "its size is wrong" if (folder / name).exists() else "it is missing"
            )
    return Image(folder, manifest, _sha256(folder / MANIFEST), _parent(manifest, folder))


def _parent(manifest: Manifest, folder: Path) -> Image | None:
    """A disk of kind `layer` is the only one that stands on another image's."""
    if manifest.kind != "layer" or manifest.parent is None:
        return None
    return _read_image(folder.with_name(manifest.parent))


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        return parse_manifest(file.read_bytes(), source=str(file))
    except OSError as error:
        raise _damaged(file, error.strerror or "it cannot be read") from error
    except OtherVersion as error:
        raise OtherVersionsImage(
            f"the image was made by another version of pytest-kvmlab: {error.message}",
            "build it again: kvmlab image build",
        ) from error
    except ConfigError as error:
        raise _damaged(file, error.message) from error


def _damaged(file: Path, why: str) -> ImageError:
    return ImageError(f"the image is damaged: {file}: {why}", "build it again: kvmlab image build")


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(file, error.strerror or "it cannot be read") from error


def _digest(file: Path, size: int, meter: Meter) -> str:
    try:
        with file.open("rb") as content:
            return pour(content, size, lambda _piece: None, meter)
    except OSError as error:
        raise _damaged(file, error.strerror or "it cannot be read") from error
    except EOFError:
        raise _damaged(file, "its size is wrong") from None


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def _folder_content(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _folders_below(folder: Path) -> list[Path]:
    """The folders of an image and of all that its disk stands on; of a damaged image, only its own."""
    try:
        return [image.folder for image in _read_image(folder).lineage()]
    except ImageError:
        return [folder]


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _in_use(image: Image) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(locks.shared(image.lock_file))
        except FileNotFoundError as error:
            raise _removed(image) from error
        with suppress(OSError):  # a store that is read-only does not know when its images were used
            os.utime(image.lock_file)
        _check_still_there(image)
        yield


def _check_still_there(image: Image) -> None:
    """See that it was not removed between finding and locking it.

    The manifest is read anew: an NFS client asks its server when a file is opened, not when a path is seen.
    """
    try:
        there = hashlib.sha256((image.folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise _removed(image) from error
    if there != image.sha256:
        raise ImageError(f"the image {image.folder} was replaced meanwhile", "try again")


def _removed(image: Image) -> ImageError:
    return ImageError(f"the image {image.folder} was removed", "try again: it is built anew")
