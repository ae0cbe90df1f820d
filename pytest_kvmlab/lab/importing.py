"""From a stranger's file to an image in the store.

The file is only read. What comes of it is made in the folder of one who builds, so that it goes away with
whatever interrupts the import, and then moved into place.
"""

import hashlib
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvmlab.drivers import disk_headers, kernel, qemu_img, unpacking
from pytest_kvmlab.drivers.confined import Limits
from pytest_kvmlab.drivers.disk_content import LOOKED_AT, Content, content_of
from pytest_kvmlab.drivers.disk_formats import Compression, Sample, compression_of, container_of, take_sample
from pytest_kvmlab.drivers.qemu_img import ForeignDisk
from pytest_kvmlab.drivers.root_filesystem import extract_boot_files
from pytest_kvmlab.drivers.unpacking import Budget, CopyProgress
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.recipes import recipes
from pytest_kvmlab.lab.store import Image, Store, record
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.guest import DiskFormat
from pytest_kvmlab.spec.manifest import CDROM, DISKS, INITRD, KERNEL, FileRecord, Manifest
from pytest_kvmlab.spec.names import check_image_name
from pytest_kvmlab.spec.quantity import GIB, MIB

# Part of every imported image's identity: raise it whenever this package makes other bytes of the same file.
_IMPORTER = 1

_LEFT_FREE = 256 * MIB  # of the store's disk, which others use too
_SLOWEST = 10 * MIB  # bytes a second that the smallest of machines gets done
_AT_LEAST_SECONDS = 600.0
# The first root is the whole disk, as a kernel names the first virtio disk
_ROOT_CMDLINE = "root=/dev/vda rw console=tty0 console=ttyS0"


@dataclass(frozen=True)
class ImportRequest:
    """What shall be imported as what.

    Attributes:
        name: what guests will call the image.
        file: a disk or a disc in any of the known formats, compressed or not, or a block device.
        sha256: what the file's SHA-256 has to be, hexadecimal.
        guest: keys of its guests, as they are written in a table `guest`.
        companions: other files that the image may be read from: what a qcow2 image stands on.
        max_size: bytes that the disk may have.
        replace: also if another image has the name.
    """

    name: str
    file: Path
    sha256: str | None = None
    guest: Mapping[str, object] = field(default_factory=dict)
    companions: Sequence[Path] = ()
    max_size: int = 256 * GIB
    replace: bool = False


def import_image(request: ImportRequest, store: Store, *, progress: Progress) -> Image:
    """Bring a disk or a disc into the store.

    A raw disk stays raw, a qcow2 image that stands alone and a disc stay as they are; everything else becomes
    qcow2. With a bare file system come the kernel and the initrd that are found in it.

    Args:
        request: what shall be imported.
        store: where the image goes.
        progress: told what is being done.

    Returns:
        The image.

    Raises:
        ConfigError: the name is none, or a recipe has it.
        ImageError: the file is damaged, lies about itself, names other files, is too large, has another
            SHA-256 or nothing that a guest could start from; or the store cannot be written to.
        HostError: a program is missing.
    """
    _refuse_name(request.name)
    waiting = f"waiting for another process that makes the image {request.name}"
    with store.building(request.name, waiting=lambda: progress(waiting, None)) as folder:
        if not request.replace:
            _refuse_taken(request.name, store)
        before = _fingerprint(request.file)
        work = _Import(request, folder, progress)
        manifest = work.run()
        if _fingerprint(request.file) != before:
            raise ImageError(f"the image {request.file} was written to while it was imported", "try again")
        return _published(manifest, work.image, store)


def _refuse_name(name: str) -> None:
    try:
        check_image_name(name)
    except ValueError as error:
        raise ConfigError(f"'{name}': {error}") from None
    if name in recipes():
        raise ConfigError(
            f"'{name}' is the name of a recipe, which would be built again", "choose another name"
        )


def _refuse_taken(name: str, store: Store) -> None:
    """Before the work, not after it; a damaged image is nobody's loss."""
    try:
        taken = store.find(name) is not None
    except ImageError:
        taken = False
    if taken:
        raise ImageError(f"there is an image '{name}'", "choose another name, or say --replace")


def _published(manifest: Manifest, image: Path, store: Store) -> Image:
    if there := store.intact(manifest.identity):
        store.name(there)
        return there
    return store.publish(image, manifest)


class _Import:
    """One file on its way into the store.

    Args:
        request: what is imported.
        folder: an empty folder on the store's file system.
        progress: told what is being done.
    """

    def __init__(self, request: ImportRequest, folder: Path, progress: Progress) -> None:
        self.image = folder / "image"
        self.image.mkdir()
        self._request = request
        self._folder = folder
        self._progress = progress
        self._budget = _budget(request.max_size, folder)
        self._known: dict[Path, FileRecord] = {}  # what was made on the way
        self._files: dict[str, FileRecord] = {}

    def run(self) -> Manifest:
        """Fill the folder of the image, and say what it is."""
        sample = take_sample(self._request.file)
        if self._request.sha256:
            self._refuse_unexpected(self._request.sha256)
        if compression := compression_of(sample):
            sample = self._unpacked(compression)
        disk = foreign_disk(sample.path, self._request.companions)
        if disk.container == "iso":
            self._keep(disk.path, CDROM)
            return self._manifest()
        return self._import_disk(disk)

    def _refuse_unexpected(self, expected: str) -> None:
        found = unpacking.digest(self._request.file, self._telling("comparing the SHA-256 of"))
        if found != expected.lower():
            raise ImageError(
                f"the image {self._request.file} is not the expected one",
                "get it again, or ask where it comes from",
                looked_at=[f"its SHA-256      {found}", f"expected SHA-256 {expected.lower()}"],
            )

    def _unpacked(self, compression: Compression) -> Sample:
        """The name counts no more: it says what the file was before it was unpacked."""
        target = self._folder / "unpacked"
        content = unpacking.unpack(
            self._request.file, compression, target, self._budget, self._telling("unpacking")
        )
        self._known[target] = FileRecord(sha256=content.sha256, size=content.size)
        sample = take_sample(target)
        if compression_of(sample):
            raise ImageError(f"the image {self._request.file} is compressed twice", "unpack it first")
        return sample

    def _import_disk(self, disk: ForeignDisk) -> Manifest:
        self._progress(f"checking {self._request.file.name}", None)
        qemu_img.check_foreign(disk)
        size = qemu_img.virtual_size(disk)
        self._budget.check(size, 0)
        content = self._content(disk, size)
        stored = self._store_disk(disk)
        if content == "ext":
            return self._with_kernel(stored)
        return self._manifest(disk_boots=content == "boots")

    def _content(self, disk: ForeignDisk, size: int) -> Content | None:
        """What a disk can be started from; unknown, and no matter, where the guest brings its own kernel."""
        if "kernel" in self._request.guest:
            return None
        beginning = qemu_img.first_bytes(disk, self._folder / "beginning", LOOKED_AT)
        return content_of(self._request.file, beginning, size)

    def _store_disk(self, disk: ForeignDisk) -> ForeignDisk:
        if disk.container in ("raw", "qcow2") and not disk.backing:
            container: DiskFormat = "raw" if disk.container == "raw" else "qcow2"
            return ForeignDisk(self._keep(disk.path, DISKS[container]), container)
        target = self.image / DISKS["qcow2"]
        self._convert(disk, target, "qcow2")
        self._files[target.name] = record(target)
        return ForeignDisk(target, "qcow2")

    def _keep(self, source: Path, name: str) -> Path:
        """Take a file into the image as it is."""
        target = self.image / name
        if source in self._known:
            self._files[name] = self._known[source]
            return source.rename(target)
        content = unpacking.copy_sparse(source, target, self._budget, self._telling("copying"))
        self._files[name] = FileRecord(sha256=content.sha256, size=content.size)
        return target

    def _with_kernel(self, disk: ForeignDisk) -> Manifest:
        raw = disk.path
        if disk.container != "raw":
            raw = self._folder / "root.raw"
            self._convert(disk, raw, "raw")
        self._progress("taking the kernel out of the file system", None)
        found = extract_boot_files(raw, self.image / KERNEL, self.image / INITRD)
        (self.image / KERNEL).write_bytes(kernel.uncompressed((self.image / KERNEL).read_bytes()))
        for file in (KERNEL, INITRD) if found.initrd else (KERNEL,):
            self._files[file] = record(self.image / file)
        return self._manifest(kernel_version=found.release, cmdline=_ROOT_CMDLINE)

    def _convert(self, disk: ForeignDisk, target: Path, target_format: DiskFormat) -> None:
        limits = Limits(self._budget.seconds, self._budget.space)
        qemu_img.convert_foreign(
            disk, target, target_format, limits=limits, progress=self._telling("converting")
        )

    def _manifest(self, **boot: object) -> Manifest:
        return _manifest(self._request, self._files, boot)

    def _telling(self, step: str) -> CopyProgress:
        """Tell a step's progress by whole percents: each of them is a line somewhere."""
        what, told = f"{step} {self._request.file.name}", -1

        def tell(share: float) -> None:
            nonlocal told
            if int(share * 100) > told:
                told = int(share * 100)
                self._progress(what, share)

        return tell


def foreign_disk(path: Path, companions: Sequence[Path] = ()) -> ForeignDisk:
    """Look at the header of a stranger's disk, and of the disks that it stands on.

    Args:
        path: the disk.
        companions: files that it may stand on; each has to be needed.

    Returns:
        What QEMU may open: these files and no others.

    Raises:
        ImageError: it is damaged, or names a file that is not among the companions.
    """
    left = list(companions)
    disk = _with_backing(path, left)
    if left:
        raise ImageError(f"the image {path} does not stand on {left[0]}", "leave that file out")
    return disk


def _with_backing(path: Path, companions: list[Path]) -> ForeignDisk:
    """Take out of `companions` what is needed, so that no chain is endless."""
    sample = take_sample(path)
    container = container_of(sample)
    if container != "qcow2" or not companions:
        disk_headers.refuse_danger(sample, container)
        return ForeignDisk(path, container)
    disk_headers.refuse_danger_beside_backing(sample)
    named = disk_headers.backing_file(sample)
    if named is None:
        return ForeignDisk(path, container)
    below = next((file for file in companions if file.name == Path(named).name), None)
    if below is None:
        raise ImageError(
            f"the image {path} stands on another file: {named!r}", "name that file too", looked_at=companions
        )
    companions.remove(below)
    return ForeignDisk(path, container, _with_backing(below, companions))


def _manifest(
    request: ImportRequest, files: Mapping[str, FileRecord], boot: Mapping[str, object]
) -> Manifest:
    told = {
        "name": request.name,
        "kind": "import",
        "files": files,
        "guest": _with_login(request.guest),
        **boot,
    }
    manifest = Manifest.model_validate({**told, "identity": "0" * 64})
    # Nobody is to try passwords against the name of a folder: an image with one is another image each time.
    inputs = secrets.token_hex() if manifest.has_password else f"{_IMPORTER} {manifest.to_json()}"
    return manifest.model_copy(update={"identity": hashlib.sha256(inputs.encode()).hexdigest()})


def _with_login(guest: Mapping[str, object]) -> Mapping[str, object]:
    """An image that nobody knows how to log in to is not waited for to let us in."""
    return guest if {"login", "seed"} & guest.keys() else {**guest, "login": {"channel": "none"}}


def _budget(max_size: int, folder: Path) -> Budget:
    free = shutil.disk_usage(folder).free - _LEFT_FREE
    return Budget(max_size, max(0, free), _AT_LEAST_SECONDS + max_size / _SLOWEST)


def _fingerprint(file: Path) -> tuple[int, ...]:
    """What changes when somebody writes to a file; of a device, nothing."""
    try:
        now = file.stat()
    except OSError as error:
        raise ImageError(f"the image {file} cannot be read: {error.strerror}") from error
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
