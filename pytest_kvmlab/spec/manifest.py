"""What a built image says about itself: `manifest.json` beside its files."""

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, NonNegativeInt, StringConstraints

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest import DiskFormat, ImageName, Keys
from pytest_kvmlab.spec.validation import validate

KERNEL, INITRD, DISK, MANIFEST = "vmlinux", "initrd", "data.qcow2", "manifest.json"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class FileRecord(Keys):
    """One file of an image, as it was when it was built; its size in bytes."""

    sha256: Sha256
    size: NonNegativeInt


def _complete(files: Mapping[str, FileRecord]) -> Mapping[str, FileRecord]:
    if set(files) != {KERNEL, INITRD, DISK}:
        raise ValueError(f"should have the files {KERNEL}, {INITRD} and {DISK}, and no others")
    return files


class Manifest(Keys):
    """An image without its bytes; nothing in it depends on where, when or by whom it was built."""

    name: ImageName
    identity: Sha256
    recipe: Sha256
    packages: Mapping[str, str]
    kernel_version: str
    files: Annotated[Mapping[str, FileRecord], AfterValidator(_complete)]
    cmdline: str
    disk_format: DiskFormat
    guest: Mapping[str, object]

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
        ConfigError: it is no JSON, or not what `Manifest.to_json` writes.
    """
    try:
        written = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not JSON: {error}") from error
    return validate(Manifest, written, source=source)
