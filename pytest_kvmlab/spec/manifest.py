"""What a built image says about itself: `manifest.json` beside its files."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt, StringConstraints

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest import DiskFormat, ImageName, Keys
from pytest_kvmlab.spec.validation import validate

KERNEL, INITRD, CDROM, MANIFEST = "vmlinux", "initrd", "cdrom.iso", "manifest.json"
DISKS: Mapping[DiskFormat, str] = {"qcow2": "disk.qcow2", "raw": "disk.raw"}
# What images grow from, and what they were made of; guests need neither.
TREE, LOCK = "root.tar", "image.lock"

_FILES = frozenset({KERNEL, INITRD, CDROM, TREE, LOCK, *DISKS.values()})

Kind = Literal["initramfs", "debian", "layer", "installer", "import"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class OtherVersion(ConfigError):
    """A manifest as another version of this package writes it."""


class FileRecord(Keys):
    """One file of an image, as it was when it was built; its size in bytes."""

    sha256: Sha256
    size: NonNegativeInt


def _bootable(files: Mapping[str, FileRecord]) -> Mapping[str, FileRecord]:
    if unknown := set(files) - _FILES:
        raise ValueError(f"has a file that no image has: {', '.join(sorted(unknown))}")
    if not {KERNEL, CDROM, *DISKS.values()} & set(files):
        raise ValueError("has nothing that a guest could boot from")
    if set(DISKS.values()) <= set(files):
        raise ValueError("has two disks")
    return files


class Manifest(Keys):
    """An image without its bytes; nothing in it depends on where, when or by whom it was built.

    `recipe` is `None` for what was imported; `parent` is the identity of the image that it grew from, whose
    disk a `layer` stands on; `suite` is the release of Debian of its packages; `disk_boots` says that
    its disk needs no kernel from outside.
    """

    name: ImageName
    kind: Kind
    identity: Sha256
    recipe: Sha256 | None = None
    parent: Sha256 | None = None
    suite: str | None = None
    packages: Mapping[str, str] = {}
    kernel_version: str | None = None
    files: Annotated[Mapping[str, FileRecord], AfterValidator(_bootable)]
    cmdline: str | None = None
    disk_boots: bool = False
    guest: Mapping[str, object] = {}

    @property
    def has_password(self) -> bool:
        """Whether somebody who reads this learns a password."""
        login = self.guest.get("login")
        return isinstance(login, Mapping) and "password" in login

    def to_json(self) -> str:
        """Write the manifest down: equal manifests give equal text."""
        return self.model_dump_json(indent=2) + "\n"


def parse_manifest(text: bytes, *, source: str) -> Manifest:
    """Read a manifest.

    Args:
        text: the content of a `manifest.json`.
        source: the file's path, for the message.

    Returns:
        The manifest, complete.

    Raises:
        OtherVersion: it has other keys than `Manifest.to_json` writes.
        ConfigError: it is no JSON, or says something that cannot be.
    """
    try:
        written = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not JSON: {error}") from error
    try:
        return validate(Manifest, written, source=source)
    except ConfigError as error:
        if (
            isinstance(written, dict)
            and {"name", "identity"} <= written.keys() != Manifest.model_fields.keys()
        ):
            raise OtherVersion(error.message, error.hint) from error
        raise
