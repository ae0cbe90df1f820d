"""An image out of the store into one file, and back."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab import archive
from pytest_kvmlab.lab.copies import check_name, derived, waiting
from pytest_kvmlab.lab.store import Image, Store, record
from pytest_kvmlab.lab.transfer import Meter
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.manifest import DISKS, MANIFEST, FileRecord, Manifest, parse_manifest
from pytest_kvmlab.spec.validation import validate

_LARGEST_MANIFEST = 2**22
_ROOM_FOR_FOLDERS = 2**20


def export_image(image: Image, file: Path, *, progress: Progress) -> None:
    """Write an image into one compressed file, with its manifest and hashes.

    A disk that stands on another image's is written whole, so that the file needs no other.

    Args:
        image: the image; it is verified on the way.
        file: where to; what is there already stays until the new file is complete.
        progress: told what is being done.

    Raises:
        ImageError: the image is damaged, or the file cannot be written.
    """
    with image.lock_shared(), _scratch(file) as scratch:
        manifest, places = _whole(image, scratch, progress)
        part = scratch / "part"
        # As in the store, a password is not for everybody.
        mode = 0o600 if manifest.has_password else 0o666
        with open(part, "wb", opener=partial(os.open, mode=mode)) as target:
            _write(manifest, places, target, progress)
            target.flush()
            os.fsync(target.fileno())
        part.rename(file)


def restore_image(
    file: Path,
    store: Store,
    *,
    name: str | None = None,
    replace: bool = False,
    trusted: bool = False,
    progress: Progress,
) -> Image:
    """Put an exported image back; whoever made the file is not trusted.

    Args:
        file: what `export_image` wrote.
        store: where the image goes.
        name: what it is called from now on, if not as before.
        replace: also if another image has this name.
        trusted: its guests may be led to files of this machine that are not in it, such as a private key.
        progress: told what is being done.

    Returns:
        The image, every file of which has the hash that its manifest says.

    Raises:
        ImageError: the file is truncated, changed, or no exported image; its content would be dangerous; the
            name is taken; or the store has no room. The store is as it was then.
    """
    with archive.unpacked(file) as stream:
        manifest = _read_manifest(stream, name, file, trusted=trusted)
        with store.building(manifest.name, waiting=lambda: progress(waiting(manifest.name), None)) as folder:
            check_name(manifest, store, replace=replace)
            _require_room(manifest, folder)
            image = folder / "image"
            image.mkdir()
            _unpack(stream, manifest, image, progress)
            if there := store.intact(manifest.identity):
                store.name(there)
                return there
            return store.publish(image, manifest)


def _whole(image: Image, scratch: Path, progress: Progress) -> tuple[Manifest, Mapping[str, Path]]:
    """The image as it is, or, where its disk stands on another's, with a disk that stands alone."""
    places = {name: image.folder / name for name in image.manifest.files}
    if image.parent is None or image.disk is None or image.disk_format is None:
        return image.manifest, places
    name = DISKS["qcow2"]
    progress(f"copying the disks below {image.name} into one", None)
    qemu_img.convert(image.disk, image.disk_format, scratch / name, "qcow2")
    told = {
        "parent": None,
        "identity": derived("whole", image.sha256),
        "files": {**image.manifest.files, name: record(scratch / name)},
    }
    manifest = Manifest.model_validate({**image.manifest.model_dump(), **told})
    return manifest, {**places, name: scratch / name}


def _write(manifest: Manifest, places: Mapping[str, Path], target: BinaryIO, progress: Progress) -> None:
    text = manifest.to_json().encode()
    meter = Meter(f"exporting {manifest.name}", len(text) + _total(manifest), progress)
    with archive.packed(target) as stream:
        archive.pack(stream, MANIFEST, len(text), BytesIO(text), meter)
        for name, expected in manifest.files.items():
            with places[name].open("rb") as source:
                if archive.pack(stream, name, expected.size, source, meter) != expected.sha256:
                    raise ImageError(
                        f"the image is damaged: {places[name]}: its content was changed",
                        "restore an older backup, or build it again: kvmlab image build",
                    )


@contextmanager
def _scratch(file: Path) -> Iterator[Path]:
    """A folder beside a file, on the same file system, for what is to become the file; removed at the end."""
    # Named before it is made, so that a signal that comes as soon as it is there finds somebody to remove it.
    folder = file.absolute().parent / f".{file.name}.{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    except OSError as error:
        raise ImageError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_manifest(stream: BinaryIO, name: str | None, file: Path, *, trusted: bool) -> Manifest:
    size = archive.next_size(stream, MANIFEST)
    if size > _LARGEST_MANIFEST:
        raise ImageError(f"the manifest in {file} is too large: {size} bytes")
    text = BytesIO()
    archive.unpack(stream, size, text, Meter("", size, lambda _step, _share: None))
    try:
        manifest = parse_manifest(text.getvalue(), source=f"{file}: {MANIFEST}")
        keys = validate(GuestKeys, manifest.guest, source=f"{file}: {MANIFEST}: guest")
    except ConfigError as error:
        raise ImageError(error.message, error.hint) from error
    if not trusted:
        _refuse_paths(keys, file)
    if manifest.kind == "layer" and manifest.parent:
        raise ImageError(f"the disk in {file} stands on another image's, so it is not whole")
    return manifest if name in (None, manifest.name) else _called(manifest, str(name))


def _called(manifest: Manifest, name: str) -> Manifest:
    identity = derived("copy", name, manifest.identity, manifest.to_json())
    return Manifest.model_validate(
        {**manifest.model_dump(), "name": name, "recipe": None, "identity": identity}
    )


def _refuse_paths(keys: GuestKeys, file: Path) -> None:
    """A stranger's image must not lead a guest to files of this machine."""
    if paths := list(_paths(keys)):
        raise ImageError(
            f"the manifest in {file} names files outside of it: {', '.join(map(str, paths))}",
            "if you trust whoever made it, and these files are here: kvmlab image restore --trusted",
        )


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _paths(inner)
    elif hasattr(value, "__dict__"):
        yield from _paths(vars(value))


def _require_room(manifest: Manifest, folder: Path) -> None:
    """Said before anything is written: what unpacks to more than there is may be made to do just that."""
    needed, free = _total(manifest) + _ROOM_FOR_FOLDERS, shutil.disk_usage(folder).free
    if needed > free:
        raise ImageError(
            f"the image {manifest.name} needs {needed >> 20} MiB, and the store has {free >> 20} MiB free",
            "free some space: kvmlab image prune, or choose another folder with --kvm-store",
            looked_at=[folder.parent],
        )


def _unpack(stream: BinaryIO, manifest: Manifest, image: Path, progress: Progress) -> None:
    meter = Meter(f"restoring {manifest.name}", _total(manifest), progress)
    for name, expected in manifest.files.items():
        _unpack_file(stream, name, expected, image / name, meter)
    archive.unpack_end(stream)
    # A raw disk is only ever opened as one, whatever stands in it.
    if DISKS["qcow2"] in manifest.files and qemu_img.inspect_untrusted(image / DISKS["qcow2"]) != "qcow2":
        raise ImageError(f"{DISKS['qcow2']} in the archive is no qcow2 image")


def _unpack_file(stream: BinaryIO, name: str, expected: FileRecord, file: Path, meter: Meter) -> None:
    size = archive.next_size(stream, name)
    if size != expected.size:
        raise ImageError(f"{name} in the archive has {size} bytes, but its manifest says {expected.size}")
    with file.open("xb") as target:
        if archive.unpack(stream, size, target, meter) != expected.sha256:
            raise ImageError(f"{name} in the archive was changed: it has not the hash that its manifest says")


def _total(manifest: Manifest) -> int:
    return sum(expected.size for expected in manifest.files.values())
