"""The door to mke2fs: an empty file system in a file, made without root and the same each time."""

import uuid
from pathlib import Path

from pytest_kvmlab.drivers.program import run

_SECONDS = 120
_MADE_AT = "1"  # seconds since 1970; 0 would mean "now" to e2fsprogs


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
    identifier = uuid.uuid5(uuid.NAMESPACE_OID, f"kvmlab {label}")
    # nothing is left for the guest's kernel to initialise later, in the middle of somebody's measurement
    extended = f"hash_seed={identifier},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    identity = ["-L", label, "-U", str(identifier), "-E", extended]
    run(
        ["mke2fs", "-q", "-F", "-t", "ext4", *identity, disk, f"{size // 1024}k"],
        package="e2fsprogs",
        timeout=_SECONDS,
        environment={"E2FSPROGS_FAKE_TIME": _MADE_AT},
    )
