"""The door to the files of a Linux kernel package: its image and its modules."""

import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.errors import ImageError

# Positions in the setup header: the kernel's Documentation/x86/boot.rst
_SETUP_SECTORS, _MAGIC, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 0x1F1, 0x202, 0x248, 0x24C
_VERSION, _PROTOCOL, _LOAD_FLAGS = 0x20E, 0x206, 0x236
# XLF_KERNEL_64, since protocol 2.12: the kernel can be entered in 64-bit mode, as an x86-64 one can.
_FLAGS_SINCE, _64_BITS = 0x20C, 1
_SECTOR = 512
_LONGEST_RELEASE = 64
# Without these a guest sees neither its disk nor its network.
_NEEDED = ("virtio_pci", "virtio_blk", "virtio_net")
_LARGEST = 256 * 2**20  # bytes of a kernel, and of memory to unpack it: a stranger's may be a bomb
_DECOMPRESSORS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\xfd7zXZ\0": lambda packed: lzma.LZMADecompressor(lzma.FORMAT_XZ, _LARGEST).decompress(
        packed, _LARGEST
    ),
    b"\x1f\x8b": lambda packed: zlib.decompressobj(wbits=31).decompress(packed, _LARGEST),
}


@dataclass(frozen=True)
class Module:
    """A loadable module.

    Attributes:
        name: as in `lsmod`, with underscores.
        path: of its file, below `lib/modules/RELEASE`.
        content: the ELF file, uncompressed.
        depends: names of the modules whose symbols it uses.
        aliases: the patterns of the devices and services that it serves.
    """

    name: str
    path: str
    content: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def uncompressed(boot_image: bytes) -> bytes:
    """Take the ELF kernel out of a `bzImage`.

    QEMU boots it by its PVH note, without the guest having to decompress it: under software emulation
    1.75 s instead of 4.7 to 5.8 s from power-on to a shell.

    Args:
        boot_image: the content of a Debian `vmlinuz`.

    Returns:
        The ELF image; the boot image as it is where it is packed in a way that Python cannot unpack
        (zstd in some kernels): that boots too, later.

    Raises:
        ImageError: this is no x86 Linux boot image, or it is damaged.
    """
    _require_x86(boot_image)
    offset, length = struct.unpack_from("<II", boot_image, _PAYLOAD_OFFSET)
    start = ((boot_image[_SETUP_SECTORS] or 4) + 1) * _SECTOR + offset
    payload = boot_image[start : start + length]
    for magic, decompress in _DECOMPRESSORS.items():
        if payload.startswith(magic):
            return _elf(decompress, payload)
    return boot_image


def release(boot_image: bytes) -> str:
    """Say which kernel a boot image has.

    Args:
        boot_image: the content of a `vmlinuz`.

    Returns:
        Its release, as in `uname -r`.

    Raises:
        ImageError: this is no x86 Linux boot image, or it does not say.
    """
    _require_x86(boot_image)
    (place,) = struct.unpack_from("<H", boot_image, _VERSION)
    text = boot_image[_SECTOR + place : _SECTOR + place + _LONGEST_RELEASE]
    found = re.match(rb"[0-9][A-Za-z0-9.+~_-]*", text)
    if not place or not found:
        raise ImageError("the kernel image does not say which version it is")
    return found[0].decode()


def _require_x86(boot_image: bytes) -> None:
    if boot_image[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise ImageError("the kernel is no x86 Linux boot image")


def _require_64_bits(boot_image: bytes, release: str) -> None:
    protocol, flags = (struct.unpack_from("<H", boot_image, place)[0] for place in (_PROTOCOL, _LOAD_FLAGS))
    if protocol >= _FLAGS_SINCE and not flags & _64_BITS:
        raise ImageError(
            f"the kernel {release} is of another architecture: it is a 32-bit one",
            "guests run programs of amd64: build it with CONFIG_64BIT",
        )


def require_guests_can_run_it(boot_image: bytes, modules: Path, wanted: str) -> None:
    """See that guests could boot a kernel, before anything is built with it.

    Args:
        boot_image: the content of its `vmlinuz`.
        modules: `lib/modules/RELEASE` with its modules.
        wanted: the release that it should be.

    Raises:
        ImageError: it is of another architecture or release, or has no modules of this release, or no virtio.
    """
    if (found := release(boot_image)) != wanted:
        raise ImageError(
            f"the kernel {wanted} says of itself that it is {found}: its modules would be another version's"
        )
    _require_64_bits(boot_image, wanted)
    if not (modules / "modules.builtin").exists():
        raise ImageError(f"the kernel {wanted} has no modules of its version", looked_at=[modules])
    if missing := [name for name in _NEEDED if not has_module(name, modules)]:
        raise ImageError(
            f"the kernel {wanted} has no {', '.join(missing)}: its guests would see no disk or no network",
            "build it with CONFIG_VIRTIO_PCI, CONFIG_VIRTIO_BLK and CONFIG_VIRTIO_NET",
            looked_at=[modules, modules / "modules.builtin"],
        )


def modules_folder(root: Path, release: str) -> Path:
    """Where an unpacked kernel package has its modules.

    Args:
        root: the folder that it is unpacked in.
        release: of the kernel.
    """
    merged = root / "usr" / "lib" / "modules" / release
    return merged if merged.exists() else root / "lib" / "modules" / release


def has_module(name: str, modules_folder: Path) -> bool:
    """Whether a kernel has a module, loadable or built in.

    Args:
        name: with dashes or underscores.
        modules_folder: `lib/modules/RELEASE` of an unpacked kernel package.
    """
    return _plain(name) in _built_in(modules_folder) or _plain(name) in _files(modules_folder)


def _elf(decompress: Callable[[bytes], bytes], payload: bytes) -> bytes:
    try:
        image = decompress(payload)
    except (lzma.LZMAError, zlib.error) as error:
        raise ImageError(f"the kernel image is damaged: {error}") from error
    if not image.startswith(b"\x7fELF") or len(image) == _LARGEST:
        raise ImageError("the kernel image does not hold an ELF kernel")
    return image


def with_dependencies(names: Iterable[str], modules_folder: Path) -> list[Module]:
    """Read modules and, with each, those that it needs.

    Args:
        names: module names, with dashes or underscores.
        modules_folder: `lib/modules/RELEASE` of an unpacked kernel package.

    Returns:
        The modules sorted by path.

    Raises:
        ImageError: the kernel has no such module, loadable or built in.
    """
    files, built_in = _files(modules_folder), _built_in(modules_folder)
    found: dict[str, Module] = {}
    wanted = [_plain(name) for name in names]
    while wanted:
        name = wanted.pop()
        if name in found or name in built_in:
            continue
        if name not in files:
            raise ImageError(f"the kernel has no module {name}", looked_at=[modules_folder])
        found[name] = _read_module(files[name], modules_folder)
        wanted += found[name].depends
    return sorted(found.values(), key=lambda module: module.path)


def _files(modules_folder: Path) -> dict[str, Path]:
    return {_plain(path.name): path for path in modules_folder.rglob("*.ko*")}


def _built_in(modules_folder: Path) -> set[str]:
    return {_plain(Path(line).name) for line in (modules_folder / "modules.builtin").read_text().split()}


def index(modules: Iterable[Module]) -> dict[str, str]:
    """Write the two lists that `modprobe` reads, as `depmod` would: modules.dep(5).

    Args:
        modules: modules, complete with what they depend on.

    Returns:
        Content by file name, for `lib/modules/RELEASE`.
    """
    named = {module.name: module for module in modules}
    ordered = sorted(named.values(), key=lambda module: module.path)
    needed = {
        module.name: " ".join(named[name].path for name in _load_order(module, named)) for module in ordered
    }
    return {
        "modules.dep": "".join(f"{module.path}: {needed[module.name]}\n" for module in ordered),
        "modules.alias": "".join(f"alias {alias} {m.name}\n" for m in ordered for alias in m.aliases),
    }


def _load_order(module: Module, named: Mapping[str, Module]) -> list[str]:
    """All that a module needs, nearest first: modprobe loads from the end."""
    order: list[str] = []
    for name in module.depends:
        if name in named:  # absent: built into the kernel
            order += [name, *_load_order(named[name], named)]
    return list(reversed(dict.fromkeys(reversed(order))))


def _plain(name: str) -> str:
    return name.partition(".ko")[0].replace("-", "_")


def _read_module(path: Path, modules_folder: Path) -> Module:
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    fields = [entry.partition("=")[::2] for entry in _modinfo(content).decode().split("\0")]
    depends = ",".join(value for key, value in fields if key == "depends")
    return Module(
        name=_plain(path.name),
        path=str(path.relative_to(modules_folder)).removesuffix(".xz"),
        content=content,
        depends=tuple(_plain(name) for name in depends.split(",") if name),
        aliases=tuple(value for key, value in fields if key == "alias"),
    )


def _modinfo(elf: bytes) -> bytes:
    """The section of a 64-bit little-endian ELF file that describes a module: elf(5)."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    # name, type, flags, address, offset, size
    headers = [struct.unpack_from("<IIQQQQ", elf, table + number * size) for number in range(count)]
    names_offset = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        if elf[names_offset + name :].startswith(b".modinfo\0"):
            return elf[offset : offset + length]
    return b""
