"""Say in the language of debugfs how a file system gets the files of a tree.

Pure: text comes out, nothing is run. Names are untrusted: they stand in quotes, which only a quote could end
(it is doubled), a line's end is refused, and a file that exists is named by the number of its inode. Numbers
are known beforehand, as an empty file system gives them out in ascending order. The commands: debugfs(8).
"""

import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from tarfile import TarInfo

from pytest_kvmlab.drivers import root_tar
from pytest_kvmlab.errors import ImageError

# The first inodes of every file system: include/linux/ext2_fs.h; mke2fs makes lost+found right after them.
_FIXED = {root_tar.ROOT: 2, "lost+found": 11}
_FIRST_FREE = 12
_LATEST = 2**31 - 1  # seconds since 1970; later ones would need another field
_LINE_AT_MOST = 8000  # debugfs reads 8191 bytes of a line, and takes the rest for another command
_UNTOLD = (tarfile.DIRTYPE, tarfile.SYMTYPE)
_UNSPEAKABLE = re.compile(rb"[\0\n\r]")
_XATTR_NAME = re.compile(r"[a-z]+\.[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Script:
    """What debugfs is told, and what it needs for that in its folder.

    Attributes:
        text: the commands.
        contents: by the name of a file in the folder, the path in the tree whose content it has.
        values: by the name of a file in the folder, its content: the value of an extended attribute.
        allocated: the inodes that debugfs tells, in this order, if all goes as expected.
    """

    text: bytes
    contents: Mapping[str, str]
    values: Mapping[str, bytes]
    allocated: Sequence[int]


def write(members: Mapping[str, TarInfo]) -> Script:
    """Write the commands that make these files on an empty file system.

    Args:
        members: owner, mode, times and kind of each file, by path; all folders are among them.

    Returns:
        The script.

    Raises:
        ImageError: a name or an attribute cannot be said to debugfs, or a hard link leads nowhere.
    """
    links = {path: root_tar.link_target(member) for path, member in members.items() if member.islnk()}
    own = {path: member for path, member in members.items() if path not in links}
    inodes = _numbered(own)
    values = {
        f"x{inodes[path]}.{number}": (inodes[path], name, value)
        for path, member in own.items()
        for number, (name, value) in enumerate(root_tar.xattrs(member).items())
    }
    commands = [
        *_creations(own, inodes),
        *(command for path, member in own.items() for command in _attributes(inodes[path], member)),
        *(_xattr(file, inode, name) for file, (inode, name, _) in values.items()),
        *_hard_links(links, inodes),
    ]
    return Script(
        text=b"\n".join(map(_checked, commands)) + b"\n",
        contents={f"c{inodes[path]}": path for path, member in own.items() if member.isreg()},
        values={file: value for file, (_, _, value) in values.items()},
        allocated=_told(own, inodes) + [max(inodes.values()) + 1] * len(links),
    )


def _numbered(paths: Iterable[str]) -> dict[str, int]:
    """The inodes that files will get, in the order in which they are made: by folder, parents first."""
    new = sorted((path for path in paths if path not in _FIXED), key=posixpath.split)
    return _FIXED | {path: number for number, path in enumerate(new, start=_FIRST_FREE)}


def _told(members: Mapping[str, TarInfo], inodes: Mapping[str, int]) -> list[int]:
    """Those of folders and symbolic links are not."""
    return [inode for path, inode in inodes.items() if path in members and members[path].type not in _UNTOLD]


def _creations(members: Mapping[str, TarInfo], inodes: Mapping[str, int]) -> Iterator[bytes]:
    new = [path for path in inodes if path not in _FIXED]
    for parent, paths in groupby(new, posixpath.dirname):
        yield b"cd <%d>" % inodes[parent]
        for path in paths:
            yield _creation(members[path], inodes[path], _quoted(posixpath.basename(path)))


def _creation(member: TarInfo, inode: int, name: bytes) -> bytes:
    if member.isdir():
        return b"mkdir " + name
    if member.issym():
        return b"symlink %s %s" % (name, _quoted(member.linkname))
    if member.isfifo():
        return b"mknod %s p" % name
    if member.isdev():
        kind = b"c" if member.ischr() else b"b"
        return b"mknod %s %s %d %d" % (name, kind, member.devmajor, member.devminor)
    return b"write c%d %s" % (inode, name)


def _attributes(inode: int, member: TarInfo) -> Iterator[bytes]:
    yield b"sif <%d> mode 0%o" % (inode, root_tar.mode(member))
    yield b"sif <%d> uid %d" % (inode, member.uid)
    yield b"sif <%d> gid %d" % (inode, member.gid)
    seconds = int(min(max(0, member.mtime), _LATEST))  # in this order, which makes 0 of "not a number"
    for time in (b"mtime", b"ctime", b"atime", b"crtime"):
        yield b"sif <%d> %s @%d" % (inode, time, seconds)


def _xattr(file: str, inode: int, name: str) -> bytes:
    if not _XATTR_NAME.fullmatch(name):
        raise ImageError(f"{name!r} is no name of an extended attribute")
    return b"ea_set -f %s <%d> %s" % (file.encode(), inode, name.encode())


def _hard_links(links: Mapping[str, str], inodes: Mapping[str, int]) -> Iterator[bytes]:
    targets = {path: inodes[_end_of(path, links, inodes)] for path in sorted(links)}
    for path, inode in targets.items():
        name = _quoted(posixpath.basename(path))
        yield b"cd <%d>" % inodes[posixpath.dirname(path)]
        # `link` does not enlarge a full folder; `mknod` does, and leaves its place behind
        yield b"mknod %s p" % name
        yield b"rm %s" % name
        yield b"link <%d> %s" % (inode, name)
    for inode in sorted(set(targets.values())):
        yield b"sif <%d> links_count %d" % (inode, 1 + list(targets.values()).count(inode))


def _end_of(path: str, links: Mapping[str, str], inodes: Mapping[str, int]) -> str:
    """A hard link may name another one."""
    end, seen = path, set[str]()
    while end in links and end not in seen:
        seen.add(end)
        end = links[end]
    if end not in inodes:
        raise ImageError(f"the hard link {path!r} leads to {links[path]!r}, which is not there")
    return end


def _quoted(name: str) -> bytes:
    return b'"' + name.encode("utf-8", "surrogateescape").replace(b'"', b'""') + b'"'


def _checked(command: bytes) -> bytes:
    if _UNSPEAKABLE.search(command) or len(command) > _LINE_AT_MOST:
        raise ImageError(f"a file with this name cannot be put on a disk: {command[:200]!r}")
    return command
