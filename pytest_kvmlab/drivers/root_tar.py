"""Read the tree of a system out of a tar archive without unpacking it: no name in it becomes a path here."""

import io
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tarfile import TarInfo
from typing import IO

from pytest_kvmlab.errors import ImageError

ROOT = ""
_LINKS_AT_MOST = 40  # as Linux: path_resolution(7)
_XATTR = "SCHILY.xattr."  # star's extension of the pax format, which GNU tar and mmdebstrap write too


class Tree:
    """The files of an archive, and those that were laid over them.

    Attributes:
        members: each with its owner, mode and times, by its path without a leading slash; the root folder
            is the empty path. Of a path given twice the last entry counts; implied folders are there.
    """

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._added: dict[str, bytes] = {}
        self.members: dict[str, TarInfo] = {ROOT: _folder(ROOT)}
        for member in archive:
            self._put(_path_of(member), member)

    def add(self, path: str, content: bytes) -> None:
        """Lay a file of root's, which everyone may read, over what the archive has there.

        Args:
            path: where, without a leading slash.
            content: its bytes.
        """
        file = TarInfo(path)
        file.mode, file.size = 0o644, len(content)
        self._added[path] = content
        self._put(path, file)

    def resolve(self, path: str) -> str:
        """Follow links inside the tree.

        Args:
            path: of a file, without a leading slash.

        Returns:
            The path of what is there, without links.

        Raises:
            ImageError: nothing is there, or the links go round in a circle.
        """
        here, rest, links = ROOT, path.split("/"), 0
        while rest:
            here = posixpath.normpath(posixpath.join("/", here, rest.pop(0))).lstrip("/")
            member = self.members.get(here)
            if member is None or links > _LINKS_AT_MOST:
                raise ImageError(f"the tree has no {path}", looked_at=[self._archive.name])
            if member.issym() or member.islnk():
                from_root = member.islnk() or member.linkname.startswith("/")
                here, links = ROOT if from_root else posixpath.dirname(here), links + 1
                rest = [part for part in member.linkname.split("/") if part] + rest
        return here

    def below(self, folder: str) -> Iterator[str]:
        """The paths of the regular files in a folder, sorted, without those in folders within."""
        for path, member in sorted(self.members.items()):
            if member.isreg() and posixpath.dirname(path) == folder:
                yield path

    def read(self, path: str) -> bytes:
        """The bytes of a file, links followed.

        Raises:
            ImageError: it is not there, no regular file, or the archive ends too early.
        """
        with self.open(self.resolve(path)) as file:
            return file.read()

    def open(self, path: str) -> IO[bytes]:
        """The content of a regular file, to be read from its beginning; no link is followed."""
        if path in self._added:
            return io.BytesIO(self._added[path])
        content = self._archive.extractfile(self.members[path])
        if content is None:
            raise ImageError(f"{path!r} is no regular file", looked_at=[self._archive.name])
        return content

    def _put(self, path: str, member: TarInfo) -> None:
        for parent in _parents(path):
            if not self.members.setdefault(parent, _folder(parent)).isdir():
                raise ImageError(f"{path!r} lies below {parent!r}, which is no folder")
        self.members[path] = member


@contextmanager
def opened(archive: Path) -> Iterator[Tree]:
    """Open the archive of a system's tree.

    Args:
        archive: a tar archive, not compressed.

    Yields:
        What is in it.

    Raises:
        ImageError: it cannot be read, is damaged, or names files outside of it.
    """
    try:
        with _reading(archive) as tar:
            yield Tree(tar)
    except tarfile.TarError as error:
        raise ImageError(f"the archive {archive} is damaged: {error}") from error


def _reading(archive: Path) -> tarfile.TarFile:
    try:
        # names need not be UTF-8; what cannot be decoded comes out as it went in
        return tarfile.open(archive, "r:", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ImageError(f"the archive {archive} cannot be read: {error.strerror}") from error


def xattrs(member: TarInfo) -> dict[str, bytes]:
    """The extended attributes of an archive's member, by name."""
    return {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in sorted(member.pax_headers.items())
        if key.startswith(_XATTR)
    }


def mode(member: TarInfo) -> int:
    """The type and permissions of an archive's member, as in `stat.st_mode`.

    Raises:
        ImageError: it is of a type that file systems do not have.
    """
    kinds = {
        tarfile.DIRTYPE: stat.S_IFDIR,
        tarfile.SYMTYPE: stat.S_IFLNK,
        tarfile.CHRTYPE: stat.S_IFCHR,
        tarfile.BLKTYPE: stat.S_IFBLK,
        tarfile.FIFOTYPE: stat.S_IFIFO,
    }
    kind = stat.S_IFREG if member.isreg() else kinds.get(member.type)
    if kind is None:
        raise ImageError(f"{member.name!r} is of an unknown type {member.type!r}")
    return kind | member.mode & 0o7777


def link_target(member: TarInfo) -> str:
    """The path of the file whose second name a hard link is."""
    return _normal(member.linkname)


def _path_of(member: TarInfo) -> str:
    return _normal(member.name)


def _normal(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageError(f"{name!r} leads out of its archive")
    return "/".join(parts)


def _parents(path: str) -> list[str]:
    """Outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts))] if path else []


def _folder(path: str) -> TarInfo:
    folder = TarInfo(path)
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    return folder
