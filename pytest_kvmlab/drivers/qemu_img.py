"""The door to qemu-img.

QEMU is always told the format of an image instead of guessing it. The header of a stranger's file is read
before QEMU opens it (`pytest_kvmlab.drivers.disk_headers`), and then QEMU is told which files
it may open.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_kvmlab.drivers.confined import Limits, confined, run_confined
from pytest_kvmlab.drivers.disk_formats import (
    CONTAINER_NAMES,
    Container,
    compression_of,
    container_of,
    take_sample,
)
from pytest_kvmlab.drivers.disk_headers import refuse_danger
from pytest_kvmlab.drivers.program import run
from pytest_kvmlab.drivers.unpacking import CopyProgress
from pytest_kvmlab.errors import ImageError

Format = Literal["qcow2", "raw"]

_PACKAGE = "qemu-utils"
_QUICK_SECONDS = 30
_WHOLE_FILE_SECONDS = 1800
_LEAKED_CLUSTERS = 3  # exit status of `qemu-img check`: wasted space, no damage
_STACKABLE = ("qcow2", "vmdk")  # formats whose images may stand on another one
_NO_CHECK = 63  # the format has nothing that could be checked

_READ_ONLY = Limits(seconds=_QUICK_SECONDS, file_size=2**20)
_CHECK = Limits(seconds=_WHOLE_FILE_SECONDS, file_size=2**20)
_BLOCK = 64 * 2**10
_TOO_LARGE = "File too large"  # what the system says at the limit; QEMU is told no more than that
_SHARE = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


@dataclass(frozen=True)
class ForeignDisk:
    """A stranger's image whose header was looked at, and all the files that QEMU may open for it.

    Attributes:
        path: the file.
        container: its format.
        backing: the image that it stands on.
    """

    path: Path
    container: Container
    backing: "ForeignDisk | None" = None


@dataclass(frozen=True)
class DiskInfo:
    """What qemu-img says about an image.

    Attributes:
        format: `qcow2` or `raw`.
        virtual_size: bytes that a guest sees.
        actual_size: bytes that it occupies.
        backing: the file below it as its header names it, or None.
        data_file: the file that holds its data as its header names it, or None.
    """

    format: Format
    virtual_size: int
    actual_size: int
    backing: str | None
    data_file: str | None


def create_overlay(base: Path, base_format: Format, overlay: Path) -> None:
    """Make an empty qcow2 image whose content is another image's until it is written to.

    Args:
        base: the image below, which is never written to.
        base_format: its format; never guessed.
        overlay: the file to make.

    Raises:
        ImageError: it cannot be made.
    """
    _qemu_img("create", "-q", "-f", "qcow2", "-F", base_format, "-b", base.absolute(), overlay.absolute())


def create_blank(path: Path, size: int) -> None:
    """Make an empty disk.

    Args:
        path: the qcow2 file to make.
        size: its virtual size in bytes.

    Raises:
        ImageError: the disk is full, or `path` cannot be written.
        HostError: qemu-img is not installed.
    """
    _qemu_img("create", "-q", "-f", "qcow2", path, str(size))


def convert(source: Path, source_format: Format, target: Path, target_format: Format) -> None:
    """Copy the content of an image into a new one.

    Args:
        source: the image to read.
        source_format: its format; never guessed.
        target: the file to make.
        target_format: the new one's format.

    Raises:
        ImageError: one of them cannot be read or written.
    """
    files = source.absolute(), target.absolute()
    _qemu_img("convert", "-f", source_format, "-O", target_format, *files, timeout=_WHOLE_FILE_SECONDS)


def copy_overlay(overlay: Path, base: Path, base_format: Format, target: Path) -> None:
    """Copy what an image has of its own into a new one that stands on the same image.

    Args:
        overlay: the qcow2 image to read.
        base: the image below both.
        base_format: its format; never guessed.
        target: the qcow2 file to make.

    Raises:
        ImageError: one of them cannot be read or written.
    """
    below: list[str | Path] = ["-B", base.absolute(), "-F", base_format]
    files = overlay.absolute(), target.absolute()
    _qemu_img("convert", "-f", "qcow2", "-O", "qcow2", *below, *files, timeout=_WHOLE_FILE_SECONDS)


def name_backing(image: Path, base: Path, base_format: Format) -> None:
    """Call the image below another one by another path; the content is not looked at.

    Args:
        image: the qcow2 image above.
        base: the same image as before; relative to the folder of `image`, or absolute.
        base_format: its format; never guessed.

    Raises:
        ImageError: the image cannot be written.
    """
    _qemu_img("rebase", "-u", "-f", "qcow2", "-F", base_format, "-b", base, image.absolute())


def info(path: Path, image_format: Format) -> DiskInfo:
    """Ask what an image is; the files that it names are not opened, save an external data file.

    Args:
        path: an image of our own, or one that `inspect_untrusted` let pass.
        image_format: its format; never guessed.

    Returns:
        Sizes and references.

    Raises:
        ImageError: QEMU cannot read it.
    """
    # shared: a running guest may have it open for writing
    told = json.loads(_qemu_img("info", "--output=json", "-U", "-f", image_format, path.absolute()))
    details = told.get("format-specific", {}).get("data", {})
    return DiskInfo(
        format=image_format,
        virtual_size=told["virtual-size"],
        actual_size=told["actual-size"],
        backing=told.get("backing-filename"),
        data_file=details.get("data-file"),
    )


def check(path: Path) -> None:
    """Check the structure of a qcow2 image.

    Args:
        path: an image of our own, or one whose header was looked at.

    Raises:
        ImageError: it is damaged.
    """
    check_foreign(ForeignDisk(path, "qcow2"))


def inspect_untrusted(path: Path) -> Format:
    """Find out the format of a stranger's image without following anything that it names.

    Args:
        path: the file or block device to look at.

    Returns:
        `qcow2` or `raw`.

    Raises:
        ImageError: it is missing, unreadable, empty, truncated, damaged, encrypted, of another format than
            its name claims or than guests can use, or it names other files.
    """
    sample = take_sample(path)
    if compression := compression_of(sample):
        raise _to_be_imported(path, f"compressed with {compression}")
    container = container_of(sample)
    refuse_danger(sample, container)
    if container == "qcow2":
        check(path)
        return "qcow2"
    if container == "raw":
        return "raw"
    raise _to_be_imported(path, CONTAINER_NAMES[container])


def _to_be_imported(path: Path, what: str) -> ImageError:
    return ImageError(f"the image {path} is {what}", f"import it: kvmlab image import NAME {path}")


def check_foreign(disk: ForeignDisk) -> None:
    """Check the structure of a stranger's image, if its format has one.

    Args:
        disk: an image whose header was looked at.

    Raises:
        ImageError: it is damaged, or another process writes to it.
    """
    accept = (0, _LEAKED_CLUSTERS, _NO_CHECK)
    _confined("check", "-q", _node(disk), limits=_CHECK, accept=accept)


def virtual_size(disk: ForeignDisk) -> int:
    """Ask how many bytes a guest would see.

    Args:
        disk: an image whose header was looked at.

    Raises:
        ImageError: QEMU cannot read it.
    """
    alone = replace(disk, backing=None)  # `info` opens nothing below it
    told = json.loads(_confined("info", "--output=json", _node(alone), limits=_READ_ONLY))
    return int(told["virtual-size"])


def first_bytes(disk: ForeignDisk, target: Path, size: int) -> bytes:
    """Read what a guest would see at the beginning of a disk.

    Args:
        disk: an image whose header was looked at.
        target: a file that may be written for this.
        size: how much is wanted at least, in bytes.

    Raises:
        ImageError: QEMU cannot read it.
    """
    blocks = -(-size // _BLOCK)
    operands = f"bs={_BLOCK}", f"count={blocks}", f"if={_node(disk)}", f"of={target.absolute()}"
    _confined("dd", "-O", "raw", *operands, limits=_READ_ONLY)
    return target.read_bytes()


def convert_foreign(
    disk: ForeignDisk, target: Path, target_format: Format, *, limits: Limits, progress: CopyProgress
) -> None:
    """Copy what a guest would see of a stranger's disk into an image that stands alone.

    Args:
        disk: an image whose header was looked at.
        target: the file to make.
        target_format: its format.
        limits: how long it may take, and how large the result may get.
        progress: told how much is done.

    Raises:
        ImageError: it cannot be read, the result gets too large or does not fit, or it takes too long.
    """
    arguments: list[str | Path] = [
        "qemu-img",
        "convert",
        "-p",
        "-O",
        target_format,
        _node(disk),
        target.absolute(),
    ]
    try:
        with confined(arguments, package=_PACKAGE, limits=limits) as output:
            while told := output.read1(4096):  # type: ignore[attr-defined] # a buffered pipe, typed as any
                for share in _SHARE.findall(told):
                    progress(float(share) / 100)
    except ImageError as error:
        if _TOO_LARGE not in error.message:
            raise
        raise ImageError(
            f"the {limits.file_size} bytes that are free are too few for the image {disk.path}",
            "free some space",
        ) from error


def _node(disk: ForeignDisk) -> str:
    """Say which files QEMU opens, as what: it follows no name in an image (qemu(1), `-blockdev`)."""
    return f"json:{json.dumps(_description(disk))}"


def _description(disk: ForeignDisk) -> dict[str, object]:
    driver = "host_device" if disk.path.is_block_device() else "file"
    node: dict[str, object] = {
        "driver": disk.container,
        "file": {"driver": driver, "filename": str(disk.path.absolute())},
    }
    if disk.container in _STACKABLE:
        node["backing"] = _description(disk.backing) if disk.backing else None
    return node


def _confined(command: str, *arguments: str | Path, limits: Limits, accept: Sequence[int] = (0,)) -> str:
    return run_confined(["qemu-img", command, *arguments], package=_PACKAGE, limits=limits, accept=accept)


def _qemu_img(*arguments: str | Path, timeout: float = _QUICK_SECONDS, accept: Sequence[int] = (0,)) -> str:
    """File names are absolute here: `nbd:…` or `json:…` would mean something else to QEMU."""
    return run(["qemu-img", *arguments], package=_PACKAGE, timeout=timeout, accept=accept)
