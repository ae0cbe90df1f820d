"""Tar archives of a few files, which no host has to have."""

import io
import tarfile
from pathlib import Path
from tarfile import TarInfo

Member = tuple[TarInfo, bytes]
TIME = 1_700_000_000


def member(path: str, *, mode: int = 0o644, owner: tuple[int, int] = (0, 0), time: int = TIME) -> TarInfo:
    info = TarInfo(path)
    info.mode, (info.uid, info.gid), info.mtime = mode, owner, time
    return info


def file(path: str, content: bytes = b"", *, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> Member:
    info = member(path, mode=mode, owner=owner)
    info.size = len(content)
    return info, content


def folder(path: str, *, mode: int = 0o755) -> Member:
    return of_type(tarfile.DIRTYPE, member(path, mode=mode)), b""


def symlink(path: str, target: str) -> Member:
    info = of_type(tarfile.SYMTYPE, member(path, mode=0o777))
    info.linkname = target
    return info, b""


def hard_link(path: str, target: str) -> Member:
    info = of_type(tarfile.LNKTYPE, member(path))
    info.linkname = target
    return info, b""


def device(path: str, kind: bytes, major: int, minor: int) -> Member:
    info = of_type(kind, member(path, mode=0o666))
    info.devmajor, info.devminor = major, minor
    return info, b""


def of_type(kind: bytes, info: TarInfo) -> TarInfo:
    info.type = kind
    return info


def with_xattr(made: Member, name: str, value: bytes) -> Member:
    info, content = made
    info.pax_headers = {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")}
    return info, content


def write(archive: Path, *members: Member) -> Path:
    with tarfile.open(
        archive, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return archive
