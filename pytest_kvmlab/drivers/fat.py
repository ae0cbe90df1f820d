"""The door to mtools: a small FAT file system in a file, made without root and the same each time."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from pytest_kvmlab.drivers.program import run
from pytest_kvmlab.errors import ImageError

_SECONDS = 60
_IMAGE, _CONTENT = "image", "content"
_SECTOR = 512
_SERIAL = "4b564d4c"
_MADE_AT = "946684800"  # the year 2000: FAT knows no time before 1980
# mtools takes `*?[` for patterns, `:` for a drive and `\` for a slash; FAT knows none of them in a name
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LABEL = re.compile(r"[A-Z0-9_][A-Z0-9_ -]{0,10}")


def make(path: Path, size: int, label: str, files: Mapping[str, bytes]) -> None:
    """Make a file with a FAT file system on it that holds these files.

    The serial number and all times are fixed, so that equal arguments and an equal version of mtools give
    equal bytes: mtools(1), `SOURCE_DATE_EPOCH`. Only its owner may read it: a seed holds keys.

    Args:
        path: the file to make.
        size: bytes of the file system.
        label: its name, at most 11 capital letters and digits: `CIDATA`, `ESP`.
        files: contents by path, such as `EFI/BOOT/BOOTX64.EFI`; folders are made as needed.

    Raises:
        HostError: mtools is not installed.
        ImageError: a name is none for FAT, the files are larger than the file system, or it cannot be made.
    """
    _refuse_bad_names(label, files)
    with TemporaryDirectory(dir=path.absolute().parent, prefix=".fat-") as folder:
        work = Path(folder)
        (work / _IMAGE).touch(mode=0o600)
        _format(work, size, label)
        for parent in _folders(files):
            _mtools(work, "mmd", f"::/{parent}")
        for name, content in sorted(files.items()):
            (work / _CONTENT).write_bytes(content)
            _mtools(work, "mcopy", _CONTENT, f"::/{name}")
        (work / _IMAGE).replace(path)


def _format(work: Path, size: int, label: str) -> None:
    geometry = ["-T", str(size // _SECTOR), "-h", "64", "-s", "32"]  # heads and sectors mean nothing today
    _mtools(work, "mformat", "-C", *geometry, "-N", _SERIAL, "-v", label, "::")


def _refuse_bad_names(label: str, files: Collection[str]) -> None:
    if not _LABEL.fullmatch(label):
        raise ImageError(f"{label!r} is no label of a FAT file system")
    for name in files:
        if not all(_NAME.fullmatch(part) for part in name.split("/")):
            raise ImageError(f"{name!r} is no path for a FAT file system")
    if len({name.upper() for name in files}) < len(files):
        raise ImageError("two files have one name, since FAT ignores case", looked_at=sorted(files))


def _folders(files: Collection[str]) -> list[str]:
    """Parents first."""
    return sorted({str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."})


def _mtools(work: Path, program: str, *arguments: str) -> None:
    """Under a name of ours: mtools reads `@@` in an image's name as an offset."""
    settings = {"SOURCE_DATE_EPOCH": _MADE_AT, "TZ": "UTC", "MTOOLSRC": "/dev/null"}
    command = [program, "-i", _IMAGE, *arguments]
    run(command, package="mtools", timeout=_SECONDS, folder=work, environment=settings)
