"""The keys of a guest: what a mark, a lab file or an image may say about it."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    WithJsonSchema,
    model_validator,
)
from pydantic.config import JsonDict

from pytest_kvmlab.spec.access import HostKeyKey, LoginKeys
from pytest_kvmlab.spec.addresses import Address, MacAddress
from pytest_kvmlab.spec.expectation import ExpectationKey
from pytest_kvmlab.spec.kernel import kernel_or_file
from pytest_kvmlab.spec.names import SHORT_NAME, check_image_name, check_short_name
from pytest_kvmlab.spec.quantity import Memory, Size
from pytest_kvmlab.spec.readiness import ReadyKey
from pytest_kvmlab.spec.text import FilePath, Line
from pytest_kvmlab.spec.usb import MOST_DONGLES, UsbList

Machine = Literal["q35", "pc", "microvm"]
Firmware = Literal["bios", "uefi"]
BootDevice = Literal["disk", "cdrom", "network"]
NicModel = Literal["virtio", "e1000", "e1000e", "rtl8139"]
DiskBus = Literal["virtio", "sata", "ide"]
DiskFormat = Literal["qcow2", "raw"]
Sound = Literal["ich9", "ich6", "ac97", "es1370"]
Clock = Literal["utc", "localtime"]
Video = Literal["none", "vga", "virtio", "cirrus"]


def _without_repeats(order: tuple[BootDevice, ...]) -> tuple[BootDevice, ...]:
    if len(set(order)) < len(order):
        raise ValueError("names a device twice")
    return order


def _cpu_model(written: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", written):
        raise ValueError("should be 'host', 'max' or one model as in `virsh cpu-models x86_64`")
    return written


ImageName = Annotated[str, AfterValidator(check_image_name)]
# `image`, a version or a package; else the path of a kernel that QEMU loads.
KernelKey = Annotated[
    str | Path, PlainValidator(kernel_or_file), WithJsonSchema({"type": "string", "minLength": 1})
]
CpuModel = Annotated[str, AfterValidator(_cpu_model)]
NetworkName = Annotated[
    str,
    AfterValidator(partial(check_short_name, kind="a network")),
    WithJsonSchema({"type": "string", "pattern": f"^{SHORT_NAME}$"}),
]
Identity = Literal["machine-id", "hostname", "host-key"]
BootOrder = Annotated[tuple[BootDevice, ...], AfterValidator(_without_repeats)]


class Keys(BaseModel):
    """A table that refuses what it does not know and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _or_only_its_name(schema: JsonDict) -> None:
    table = schema.copy()
    schema.clear()
    schema["anyOf"] = [{"type": "string", "pattern": f"^{SHORT_NAME}$"}, table]


class NetworkKeys(Keys):
    """One network card: in a network of the lab, by its name, or in user-mode NAT, where it is alone.

    The bare name of a network stands for a card in it that says nothing else.
    """

    model_config = ConfigDict(json_schema_extra=_or_only_its_name)

    name: NetworkName | None = None
    mode: Literal["user"] = "user"
    address: Address | None = None
    model: NicModel = "virtio"
    mac: MacAddress | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_its_name(cls, written: object) -> object:
        return {"name": written} if isinstance(written, str) else written

    @model_validator(mode="after")
    def _in_one_network(self) -> Self:
        if self.name is not None and "mode" in self.model_fields_set:
            raise ValueError("has a name and a mode: a network of the lab has its own mode")
        if self.name is None and self.address is not None:
            raise ValueError("has an address, but no network of the lab: give its name")
        return self


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
    """Everything that may be said about a guest; each key is optional, `None` takes its default.

    `boot_timeout` in seconds.
    """

    image: ImageName | None = None
    vcpus: Annotated[StrictInt, Field(ge=1, le=255)] | None = None
    memory: Memory | None = None
    machine: Machine | None = None
    cpu: CpuModel | None = None
    firmware: Firmware | None = None
    bios_serial: StrictBool | None = None
    disks: Annotated[tuple[DiskKeys, ...], Field(max_length=16)] | None = None
    cdrom: FilePath | None = None
    boot: BootOrder | None = None
    networks: Annotated[tuple[NetworkKeys, ...], Field(max_length=8)] | None = None
    usb: Annotated[UsbList, Field(max_length=MOST_DONGLES)] | None = None
    hotplug: StrictBool | None = None
    sound: Sound | None = None
    clock: Clock | None = None
    rng: StrictBool | None = None
    tpm: StrictBool | Literal["2.0"] | None = None
    video: Video | None = None
    kernel: KernelKey | None = None
    initrd: FilePath | None = None
    cmdline: Line | None = None
    login: LoginKeys | None = None
    host_key: HostKeyKey | None = None
    seed: StrictBool | None = None
    ready: ReadyKey | None = None
    boot_timeout: Annotated[StrictInt, Field(ge=1, le=86400)] | None = None
    fresh: Annotated[tuple[Identity, ...], AfterValidator(_without_repeats)] | None = None
    expect_kernel: Annotated[tuple[ExpectationKey, ...], Field(max_length=100)] | None = None


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
        if isinstance(path := getattr(keys, name), Path)
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
