"""Where images live: read-only, addressed by what they were made from, named by links.

::

    ROOT/images/IDENTITY/   vmlinux, initrd, data.qcow2, manifest.json: complete, and never changed
    ROOT/names/NAME         a link to the image that has this name now
    ROOT/building/NAME/     an image that is being built, or was when its builder died
    ROOT/building/NAME.lock held by the builder
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.spec.guest import DiskFormat
from pytest_kvmlab.spec.manifest import DISK, INITRD, KERNEL, MANIFEST, FileRecord, Manifest, parse_manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True)
class Image:
    """A built image.

    Attributes:
        name: what guests call it.
        folder: where its files are.
        kernel: the kernel that QEMU starts.
        initrd: its first root file system.
        cmdline: what the kernel is told.
        disk: the disk that overlays are made of.
        disk_format: `qcow2` or `raw`.
        sha256: hexadecimal digest of the manifest, and so of everything that the image is.
        recipe: hexadecimal digest of the recipe that it was built from.
        kernel_version: what `uname -r` says in a guest that boots this kernel.
        guest: keys of a guest, as the recipe gives them.
    """

    name: str
    folder: Path
    kernel: Path
    initrd: Path
    cmdline: str
    disk: Path
    disk_format: DiskFormat
    sha256: str
    recipe: str
    kernel_version: str
    guest: Mapping[str, object]

    @contextmanager
    def lock_shared(self) -> Iterator[None]:
        """Keep the image from being removed while guests use it.

        Raises:
            ImageError: it has already been removed.
        """
        with _locked_folder(self.folder, fcntl.LOCK_SH):
            yield


class Store:
    """The images below one folder; several processes may use it at once.

    Args:
        root: the folder, made when the first image is built.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def images(self) -> tuple[Image, ...]:
        """The named images, sorted by name.

        Raises:
            ImageError: one of them is incomplete.
        """
        names = sorted(path.name for path in _folder_content(self.root / "names"))
        return tuple(image for image in map(self.find, names) if image)

    def find(self, name: str) -> Image | None:
        """Look an image up.

        Args:
            name: what guests call it.

        Returns:
            The image, or None if there is none of that name.

        Raises:
            ImageError: it is there but incomplete; only sizes are looked at, `verify` looks at content.
        """
        link = self.root / "names" / name
        if not _NAME.fullmatch(name) or not link.exists():
            return None
        return _read_image(link.resolve())

    def verify(self, image: Image) -> None:
        """Compare every file of an image with its manifest.

        Args:
            image: an image of this store.

        Raises:
            ImageError: a file is missing or was changed; the message names it.
        """
        for name, record in _read_manifest(image.folder).files.items():
            if _sha256(image.folder / name) != record.sha256:
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
            places = [self.root / place for place in ("images", "names", "building")]
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
            folder = self.root / "building" / name
        with self._written_to(), _locked_file(folder.with_name(f"{name}.lock"), waiting):
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
        with self._written_to():
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            for file in folder.iterdir():
                file.chmod(0o444)
            place = self.root / "images" / manifest.identity
            if place.exists():
                _discard(place, folder.with_name("discarded"))
            folder.rename(place)
        image = _read_image(place)
        self.name(image)
        return image

    def name(self, image: Image) -> None:
        """Let an image be found by its name, and remove images that no name leads to and no guest uses.

        Args:
            image: an image of this store, while its builder's lock is held.

        Raises:
            ImageError: the store cannot be written to.
        """
        with self._written_to():
            link = self.root / "building" / image.name / "name"
            link.symlink_to(Path("..", "images", image.folder.name))
            link.rename(self.root / "names" / image.name)
            self._remove_unnamed(link.with_name("superseded"))

    def _remove_unnamed(self, aside: Path) -> None:
        named = {path.resolve() for path in _folder_content(self.root / "names")}
        for folder in _folder_content(self.root / "images"):
            if folder.resolve() not in named:
                try:
                    _discard(folder, aside)
                except ImageError:
                    continue  # guests use it; the next build asks again

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
    return Image(
        name=manifest.name,
        folder=folder,
        kernel=folder / KERNEL,
        initrd=folder / INITRD,
        cmdline=manifest.cmdline,
        disk=folder / DISK,
        disk_format=manifest.disk_format,
        sha256=_sha256(folder / MANIFEST),
        recipe=manifest.recipe,
        kernel_version=manifest.kernel_version,
        guest=manifest.guest,
    )


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        return parse_manifest(file.read_bytes(), source=str(file))
    except OSError as error:
        raise _damaged(file, error.strerror or "it cannot be read") from error
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


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def _folder_content(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _discard(folder: Path, aside: Path) -> None:
    """Remove an image that nobody uses; moved aside first, so that nobody sees half of one."""
    with _locked_folder(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        folder.rename(aside)
        shutil.rmtree(aside)


@contextmanager
def _locked_folder(folder: Path, how: int) -> Iterator[None]:
    """Hold flock(2) on a folder: released by the kernel, however the process ends."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"the image {folder} was removed: {error.strerror}") from error
    try:
        _flock(descriptor, folder, how)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, folder: Path, how: int) -> None:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError as error:
        raise ImageError(f"the image {folder} is in use by guests", "end them, then try again") from error
    # removed, or built anew, between finding it and locking it
    if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
        raise ImageError(f"the image {folder} was replaced meanwhile", "try again")


@contextmanager
def _locked_file(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with file.open("a", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
