"""The door to e2fsprogs: ext4 file systems in a file, made without root and the same each time."""

import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pytest_kvmlab.drivers import debugfs_script
from pytest_kvmlab.drivers.debugfs_script import Script
from pytest_kvmlab.drivers.program import run
from pytest_kvmlab.drivers.root_tar import Tree
from pytest_kvmlab.errors import ImageError

_SECONDS = 120
_FILL_SECONDS = 900
_MADE_AT = "1"  # seconds since 1970; 0 would mean "now" to e2fsprogs
_FIXED_TIME = {"E2FSPROGS_FAKE_TIME": _MADE_AT}
# The disk of a system: said in full, since the defaults are the host's, and the newest features of theirs
# are unknown to the GRUB and the kernels of older systems.
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,"
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)
_OF_A_SYSTEM = ("-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-O", _FEATURES)
# debugfs ends with status 0 whatever happens; beside complaints it only tells its version
_DEBUGFS_COMPLAINT = re.compile(rb"^(?!debugfs \d).", re.MULTILINE)
_ALLOCATED = re.compile(r"^Allocated inode: (\d+)$", re.MULTILINE)


def make(disk: Path, size: int, label: str) -> None:
    """Make a file with an empty ext4 file system on it.

    Times, identifiers and the seed of folder hashes are fixed, so that equal arguments and an equal
    version of e2fsprogs give equal bytes: mke2fs(8), `hash_seed`.

    Args:
        disk: the file to make.
        size: bytes of the file system.
        label: its name, at most 16 bytes.

    Raises:
        HostError: mke2fs is not installed.
        ImageError: it failed.
    """
    _mke2fs(disk, size, label, ["-t", "ext4"], [])


def from_tree(tree: Tree, disk: Path, size: int, label: str, *, offset: int = 0) -> None:
    """Make an ext4 file system with the files of a system's tree.

    Owners, modes, times (all four are the time of modification), extended attributes, hard links and device
    nodes are those of the tree, whoever calls this: no file exists on this host under its name.
    Equal arguments and an equal version of e2fsprogs give equal bytes.

    Args:
        tree: the files.
        disk: the file to write to, made if it is not there.
        size: bytes of the file system.
        label: its name, at most 16 bytes.
        offset: where in `disk` it begins, in bytes.

    Raises:
        HostError: e2fsprogs is not installed.
        ImageError: the files do not fit, one of them cannot be put on a disk, or a step fails.
    """
    _refuse_too_much(tree, size)
    script = debugfs_script.write(tree.members)
    with disk.open("ab") as file:
        file.truncate(max(offset + size, file.tell()))
    with TemporaryDirectory(dir=disk.parent, prefix=".ext4-") as folder:
        work = Path(folder)
        (work / "disk").symlink_to(disk.absolute())  # a path in which no `?` begins options by accident
        _mke2fs(work / "disk", size, label, _OF_A_SYSTEM, [f"offset={offset}"])
        _lay_out(tree, script, work)
        _debugfs(work, f"disk?offset={offset}", script.allocated)
        _e2fsck(work, f"disk?offset={offset}")


def _refuse_too_much(tree: Tree, size: int) -> None:
    needed = sum(member.size for member in tree.members.values() if member.isreg())
    if needed > size:
        raise ImageError(f"{needed:,} bytes of files do not fit into {size:,} bytes", "raise the disk's size")


def _mke2fs(disk: Path, size: int, label: str, kind: Sequence[str], extended: Sequence[str]) -> None:
    identifier = uuid.uuid5(uuid.NAMESPACE_OID, f"kvmlab {label}")
    # nothing is left for the guest's kernel to initialise later, in the middle of somebody's measurement
    now = ["lazy_itable_init=0", "lazy_journal_init=0"]
    fixed = ",".join([f"hash_seed={identifier}", "root_owner=0:0", *now, *extended])
    identity = ["-L", label, "-U", str(identifier), "-E", fixed]
    command: list[str | Path] = ["mke2fs", "-q", "-F", *kind, *identity, disk, f"{size // 1024}k"]
    run(command, package="e2fsprogs", timeout=_SECONDS, environment=_FIXED_TIME)


def _lay_out(tree: Tree, script: Script, work: Path) -> None:
    """What debugfs reads, under names that are ours."""
    (work / "script").write_bytes(script.text)
    for name, value in script.values.items():
        (work / name).write_bytes(value)
    for name, path in script.contents.items():
        with tree.open(path) as content, (work / name).open("wb") as file:
            shutil.copyfileobj(content, file)


def _debugfs(work: Path, disk: str, expected: Sequence[int]) -> None:
    said = run(
        ["debugfs", "-w", "-f", "script", disk],
        package="e2fsprogs",
        timeout=_FILL_SECONDS,
        folder=work,
        environment=_FIXED_TIME,
        failure=_DEBUGFS_COMPLAINT,
    )
    # the script names files by their inodes, so an e2fsprogs that counts otherwise would mix them up
    if [int(inode) for inode in _ALLOCATED.findall(said)] != expected:
        raise ImageError("this version of debugfs gives files other inodes than expected")


def _e2fsck(work: Path, disk: str) -> None:
    command = ["e2fsck", "-f", "-n", disk]
    run(command, package="e2fsprogs", timeout=_SECONDS, folder=work, environment=_FIXED_TIME)
