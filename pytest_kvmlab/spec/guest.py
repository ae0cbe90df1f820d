"""The keys of a guest: what a mark, a lab file or an image may say about it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)

from pytest_kvmlab.spec.access import HostKeyKey, LoginKeys
from pytest_kvmlab.spec.names import check_image_name
from pytest_kvmlab.spec.quantity import Memory, Size
from pytest_kvmlab.spec.readiness import ReadyKey
from pytest_kvmlab.spec.text import FilePath, Line

Machine = Literal["q35", "pc", "microvm"]
Firmware = Literal["bios", "uefi"]
BootDevice = Literal["disk", "cdrom", "network"]
NicModel = Literal["virtio", "e1000", "e1000e", "rtl8139"]
DiskBus = Literal["virtio", "sata", "ide"]
DiskFormat = Literal["qcow2", "raw"]
Sound = Literal["ich9", "ich6", "ac97", "es1370"]
Clock = Literal["utc", "localtime"]
Video = Literal["none", "vga", "virtio", "cirrus"]

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def _unicast_mac(written: str) -> str:
    mac = written.lower()
    if not _MAC.fullmatch(mac) or mac == "00:00:00:00:00:00":
        raise ValueError("should be a MAC address such as '52:54:00:12:34:68'")
    # IEEE 802: the lowest bit of the first octet marks a group address, which no card may have.
    if int(mac[:2], 16) & 1:
        raise ValueError("is a multicast MAC address; the first octet must be even, such as '52:…'")
    return mac


def _without_repeats(order: tuple[BootDevice, ...]) -> tuple[BootDevice, ...]:
    if len(set(order)) < len(order):
        raise ValueError("names a device twice")
    return order


def _cpu_model(written: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", written):
        raise ValueError("should be 'host', 'max' or one model as in `virsh cpu-models x86_64`")
    return written


ImageName = Annotated[str, AfterValidator(check_image_name)]
CpuModel = Annotated[str, AfterValidator(_cpu_model)]
MacAddress = Annotated[str, AfterValidator(_unicast_mac)]
BootOrder = Annotated[tuple[BootDevice, ...], AfterValidator(_without_repeats)]


class Keys(BaseModel):
    """A table that refuses what it does not know and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkKeys(Keys):
    """One network card; `user` is user-mode NAT, which needs no privileges."""

    mode: Literal["user"] = "user"
    model: NicModel = "virtio"
    mac: MacAddress | None = None


class DiskKeys(Keys):
    """A disk beside the image's own: a blank one of a size, or a file that is read and never written to."""

    size: Size | None = None
    file: FilePath | None = None
    format: DiskFormat | None = None
    bus: DiskBus = "virtio"

    @model_validator(mode="after")
    def _blank_or_file(self) -> Self:
        if (self.size is None) == (self.file is None):
            raise ValueError("give either a size (a blank disk) or a file")
        # A guest writes what it likes into a raw disk: if QEMU guessed the format, the guest would choose it.
        if (self.file is None) != (self.format is None):
            raise ValueError("a file needs its format ('qcow2' or 'raw'), a blank disk has none to choose")
        return self


class GuestKeys(Keys):
    """Everything that may be said about a guest; each key is optional, `None` takes its default."""

    image: ImageName | None = None
    vcpus: Annotated[StrictInt, Field(ge=1, le=255)] | None = None
    memory: Memory | None = None
    machine: Machine | None = None
    cpu: CpuModel | None = None
    firmware: Firmware | None = None
    disks: Annotated[tuple[DiskKeys, ...], Field(max_length=16)] | None = None
    cdrom: FilePath | None = None
    boot: BootOrder | None = None
    networks: Annotated[tuple[NetworkKeys, ...], Field(max_length=8)] | None = None
    sound: Sound | None = None
    clock: Clock | None = None
    rng: StrictBool | None = None
    tpm: StrictBool | Literal["2.0"] | None = None
    video: Video | None = None
    kernel: FilePath | None = None
    initrd: FilePath | None = None
    cmdline: Line | None = None
    login: LoginKeys | None = None
    host_key: HostKeyKey | None = None
    ready: ReadyKey | None = None


SomeKeys = TypeVar("SomeKeys", bound=GuestKeys)


def merge(*layers: GuestKeys) -> GuestKeys:
    """Lay what several places say about one guest over each other.

    Args:
        layers: the nearest first: mark, lab file, image.

    Returns:
        Each key as the nearest layer that has it says it; a table or list replaces the farther one whole.
    """
    merged: dict[str, object] = {}
    for layer in reversed(layers):
        merged.update(given(layer))
    return GuestKeys.model_construct(_fields_set=set(merged), **merged)


def given(layer: GuestKeys) -> Mapping[str, object]:
    """Tell what a layer really says.

    Args:
        layer: the keys of a guest, or a larger table that has them.

    Returns:
        The keys of a guest that were written, by name.
    """
    return {name: getattr(layer, name) for name in GuestKeys.model_fields if name in layer.model_fields_set}


def anchored(keys: SomeKeys, folder: Path) -> SomeKeys:
    """Read the relative paths of a layer as seen from a folder.

    Args:
        keys: the layer.
        folder: where the file that it was written in lies.

    Returns:
        The same keys, every path absolute if the folder is; `~` is the user's home.
    """
    change: dict[str, object] = {
        name: _from(folder, path)
        for name in ("cdrom", "kernel", "initrd")
        if (path := getattr(keys, name)) is not None
    }
    if keys.login and keys.login.key:
        change["login"] = keys.login.model_copy(update={"key": _from(folder, keys.login.key)})
    if keys.disks:
        change["disks"] = tuple(_anchored_disk(disk, folder) for disk in keys.disks)
    return keys.model_copy(update=change)


def _anchored_disk(disk: DiskKeys, folder: Path) -> DiskKeys:
    return disk.model_copy(update={"file": _from(folder, disk.file)}) if disk.file else disk


def _from(folder: Path, path: Path) -> Path:
    return folder / path.expanduser()
