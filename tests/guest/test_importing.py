"""Disks of all kinds come into the store, and what is damaged, lies or bursts does not."""

import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import unpacking
from pytest_kvmlab.drivers.unpacking import Budget
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.importing import ImportRequest, import_image
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.manifest import CDROM, INITRD, KERNEL
from tests.guest import foreign_disks
from tests.guest.foreign_disks import (
    MEGABYTE,
    content_of,
    converted,
    packed,
    patched,
    raw_disk,
    root_file_system,
    run,
    written,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def imported(store: Store, file: Path, **said: object) -> Image:
    request = ImportRequest(**{"name": "disk", "file": file, "replace": True, **said})  # type: ignore[arg-type] # of any field
    image = import_image(request, store, progress=lambda _step, _share: None)
    store.verify(image)
    return image


def disk_of(image: Image) -> Path:
    assert image.disk is not None
    return image.disk


@pytest.mark.parametrize(
    "options",
    [
        ("qcow2",),
        ("qcow2", "compat=0.10"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi",),
        ("vdi", "static=on"),
        ("vpc", "subformat=dynamic", "force_size=on"),
        ("vpc", "subformat=fixed", "force_size=on"),
        ("vhdx",),
    ],
)
def test_a_disk_of_any_format_becomes_one_that_guests_use(
    tmp_path: Path, store: Store, options: Sequence[str]
) -> None:
    raw = raw_disk(tmp_path / "disk")
    image = imported(store, converted(raw, *options))
    assert (image.disk_format, image.manifest.disk_boots) == ("qcow2", True)
    assert content_of(disk_of(image), "qcow2") == raw.read_bytes()


def test_a_stream_whose_directory_is_said_by_its_footer_is_read(tmp_path: Path, store: Store) -> None:
    """As exported by those who write a VMDK in one go: "Virtual Disk Format 5.0", Stream-Optimized."""
    raw = raw_disk(tmp_path / "disk")
    disk = converted(raw, "vmdk", "subformat=streamOptimized")
    footer_marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    footer = disk.read_bytes()[:512]
    whole = patched(disk, 56, b"\xff" * 8).read_bytes() + footer_marker + footer + bytes(512)
    image = imported(store, written(disk, whole))
    assert content_of(disk_of(image), "qcow2") == raw.read_bytes()


def test_a_raw_disk_stays_raw_gets_holes_and_cannot_be_written_to(tmp_path: Path, store: Store) -> None:
    raw = raw_disk(tmp_path / "disk")
    image = imported(store, raw)
    assert disk_of(image).read_bytes() == raw.read_bytes()
    assert disk_of(image).stat().st_blocks * 512 < MEGABYTE
    assert disk_of(image).stat().st_mode & 0o222 == 0


def test_a_qcow2_image_stays_byte_for_byte_what_it_is(tmp_path: Path, store: Store) -> None:
    qcow2 = converted(raw_disk(tmp_path / "disk"), "qcow2")
    assert disk_of(imported(store, qcow2)).read_bytes() == qcow2.read_bytes()


COMPRESSORS = [("gzip", "-c"), ("xz", "-c"), ("bzip2", "-c"), ("zstd", "-qc")]


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_compressed_disk_is_unpacked(tmp_path: Path, store: Store, compressor: Sequence[str]) -> None:
    raw = raw_disk(tmp_path / "disk")
    assert disk_of(imported(store, packed(raw, compressor))).read_bytes() == raw.read_bytes()
    vdi = imported(store, packed(converted(raw, "vdi"), compressor))
    assert content_of(disk_of(vdi), "qcow2") == raw.read_bytes()


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_truncated_compressed_disk_is_refused_wherever_it_ends(
    tmp_path: Path, store: Store, compressor: Sequence[str]
) -> None:
    whole = packed(raw_disk(tmp_path / "disk"), compressor).read_bytes()
    for length in (6, 20, len(whole) // 2, len(whole) - 4, len(whole) - 1):
        with pytest.raises(ImageError, match=r"cannot be unpacked|no whole number|no disk that"):
            imported(store, written(tmp_path / "short", whole[:length]))
    assert store.images() == ()


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_damaged_compressed_disk_is_refused(
    tmp_path: Path, store: Store, compressor: Sequence[str]
) -> None:
    whole = packed(raw_disk(tmp_path / "disk"), compressor)
    with pytest.raises(ImageError, match="cannot be unpacked"):
        imported(store, patched(whole, whole.stat().st_size // 2, b"kvmlab"))


def test_a_disc_stays_a_disc_even_if_it_also_boots_as_a_disk(tmp_path: Path, store: Store) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "readme").write_text("hello")
    disc = tmp_path / "disc.img"
    run("xorriso", "-as", "mkisofs", "-quiet", "-o", str(disc), str(tmp_path / "tree"))
    image = imported(store, patched(disc, 510, foreign_disks.BOOT_SIGNATURE))
    assert list(image.manifest.files) == [CDROM]
    assert (image.folder / CDROM).read_bytes() == disc.read_bytes()


def test_the_sha256_of_the_file_is_compared_before_anything_else(tmp_path: Path, store: Store) -> None:
    file = written(tmp_path / "disk.gz", b"\x1f\x8bnot really")
    found, expected = hashlib.sha256(file.read_bytes()).hexdigest(), "0" * 64
    with pytest.raises(ImageError) as caught:
        imported(store, file, sha256=expected)
    assert found in str(caught.value)
    assert expected in str(caught.value)
    raw = raw_disk(tmp_path / "disk")
    assert imported(store, raw, sha256=hashlib.sha256(raw.read_bytes()).hexdigest().upper()).name == "disk"


def test_what_is_known_about_the_guest_is_stored_and_a_password_not_for_everyone(
    tmp_path: Path, store: Store
) -> None:
    raw = raw_disk(tmp_path / "disk")
    openly = imported(store, raw, guest={"memory": "1GiB"})
    assert openly.manifest.guest == {"memory": "1GiB", "login": {"channel": "none"}}
    assert openly.folder.stat().st_mode & 0o777 == 0o755
    login = {"login": {"user": "root", "password": "secret"}}
    secretly = imported(store, raw, guest=login)
    assert secretly.manifest.guest == login
    assert secretly.folder.stat().st_mode & 0o007 == 0
    assert imported(store, raw, guest=login).manifest.identity != secretly.manifest.identity


def test_the_same_file_is_the_same_image(tmp_path: Path, store: Store) -> None:
    raw = raw_disk(tmp_path / "disk")
    assert imported(store, raw) == imported(store, raw)


def test_another_image_loses_its_name_only_if_that_is_said(tmp_path: Path, store: Store) -> None:
    before = imported(store, raw_disk(tmp_path / "disk"))
    other = raw_disk(tmp_path / "other", partition=(2048, 4096))
    with pytest.raises(ImageError, match="say --replace"):
        imported(store, other, replace=False)
    assert store.find("disk") == before


@pytest.mark.parametrize(("name", "complaint"), [("../up", "never a path"), ("micro", "name of a recipe")])
def test_a_name_that_is_none_or_a_recipes_is_refused(
    tmp_path: Path, store: Store, name: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        imported(store, raw_disk(tmp_path / "disk"), name=name)


# --- bare file systems


def test_a_bare_file_system_brings_the_kernel_that_it_would_boot(tmp_path: Path, store: Store) -> None:
    boot = {
        "vmlinuz-6.9.0": foreign_disks.KERNEL,
        "vmlinuz-6.10.0": foreign_disks.KERNEL + b"newer",
        "initrd.img-6.9.0": b"older",
        "initrd.img-6.10.0": b"newer",
    }
    linked = root_file_system(tmp_path / "linked", boot, {"vmlinuz": "boot/vmlinuz-6.9.0"})
    image = imported(store, linked)
    assert (image.manifest.kernel_version, image.manifest.disk_boots) == ("6.9.0", False)
    assert image.manifest.cmdline is not None
    assert "root=/dev/vda" in image.manifest.cmdline
    assert (image.folder / INITRD).read_bytes() == b"older"
    newest = imported(store, converted(root_file_system(tmp_path / "newest", boot), "vdi"))
    assert newest.manifest.kernel_version == "6.10.0"
    assert (newest.folder / KERNEL).read_bytes() == boot["vmlinuz-6.10.0"]


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_a_kernel_needs_no_initrd(tmp_path: Path, store: Store, kind: str) -> None:
    disk = root_file_system(tmp_path / "disk", {"vmlinuz-6.1": foreign_disks.KERNEL}, kind=kind)
    assert set(imported(store, disk).manifest.files) == {"disk.raw", KERNEL}


def test_names_in_a_bare_file_system_are_no_commands_and_no_paths(tmp_path: Path, store: Store) -> None:
    boot = {
        "vmlinuz-1": foreign_disks.KERNEL,
        'vmlinuz-2 "x" <5>': foreign_disks.KERNEL,
        "vmlinuz-3\nvmlinuz-4": foreign_disks.KERNEL,
    }
    links = {"vmlinuz": "../../etc/passwd", "initrd.img": "/etc/shadow"}
    image = imported(store, root_file_system(tmp_path / "disk", boot, links))
    assert image.manifest.kernel_version == "1"
    assert set(image.manifest.files) == {"disk.raw", KERNEL}


def without_kernel(folder: Path) -> Path:
    return root_file_system(folder / "disk", {"readme": b"nothing"})


def with_a_text_for_a_kernel(folder: Path) -> Path:
    return root_file_system(folder / "disk", {"vmlinuz-6.1": b"hello"})


def truncated_file_system(folder: Path) -> Path:
    disk = root_file_system(folder / "disk", {"vmlinuz-6.1": foreign_disks.KERNEL})
    os.truncate(disk, 8 * MEGABYTE)
    return disk


def xfs(folder: Path) -> Path:
    return written(folder / "disk", b"XFSB".ljust(MEGABYTE, b"\0"))


# --- what is refused


def nothing_to_start(folder: Path) -> Path:
    return written(folder / "disk", bytes(MEGABYTE))


def truncated_partition(folder: Path) -> Path:
    return raw_disk(folder / "disk", partition=(2048, 1_000_000))


def truncated_gpt(folder: Path) -> Path:
    disk = raw_disk(folder / "disk", partition=(1, 8191))
    return patched(disk, 512, b"EFI PART".ljust(32, b"\0") + struct.pack("<Q", 1_000_000))


def zip_archive(folder: Path) -> Path:
    return written(folder / "disk.zip", b"PK\x03\x04".ljust(512))


def ova(folder: Path) -> Path:
    disk = converted(raw_disk(folder / "disk"), "vmdk", "subformat=streamOptimized")
    run("tar", "-cf", str(folder / "appliance.ova"), "-C", str(folder), disk.name)
    return folder / "appliance.ova"


def compressed_twice(folder: Path) -> Path:
    return packed(packed(raw_disk(folder / "disk"), ("gzip", "-c")), ("xz", "-c"))


def compressed_overlay(folder: Path) -> Path:
    overlay = folder / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", str(overlay), "1M")
    return packed(overlay, ("gzip", "-c"))


def vmdk(folder: Path) -> Path:
    return converted(raw_disk(folder / "disk"), "vmdk", "subformat=monolithicSparse")


def described(disk: Path, descriptor: str) -> Path:
    return patched(disk, 512, f"# Disk DescriptorFile\nversion=1\n{descriptor}\n".encode().ljust(1024, b"\0"))


def vmdk_of_other_files(folder: Path) -> Path:
    """Without a capacity, QEMU takes the whole for a descriptor: it opens what that one names."""
    return described(patched(vmdk(folder), 12, bytes(8)), 'RW 8 FLAT "/etc/passwd" 0')


def vmdk_with_parent(folder: Path) -> Path:
    return described(vmdk(folder), 'parentFileNameHint="/etc/passwd"\nRW 8192 SPARSE "x"')


def vmdk_with_two_extents(folder: Path) -> Path:
    return described(vmdk(folder), 'RW 8192 SPARSE "x"\nRW 8 FLAT "/etc/passwd" 0')


def split_vmdk(folder: Path) -> Path:
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "vmdk",
        "-o",
        "subformat=twoGbMaxExtentSparse",
        f"{folder}/d.vmdk",
        "8M",
    )
    return folder / "d-s001.vmdk"


def flat_vmdk(folder: Path) -> Path:
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", f"{folder}/d.vmdk", "8M")
    return folder / "d.vmdk"


def vmdk_without_its_footer(folder: Path) -> Path:
    return patched(vmdk(folder), 56, b"\xff" * 8)


def vmdk_whose_footer_lies(folder: Path) -> Path:
    disk = vmdk_without_its_footer(folder)
    footer = bytearray(disk.read_bytes()[:512])
    footer[12:20] = bytes(8)
    return written(disk, disk.read_bytes() + bytes(512) + footer + bytes(512))


def vdi(folder: Path) -> Path:
    return converted(raw_disk(folder / "disk"), "vdi")


def vdi_difference(folder: Path) -> Path:
    return patched(vdi(folder), 0x4C, struct.pack("<I", 4))


def vdi_with_parent(folder: Path) -> Path:
    return patched(vdi(folder), 0x1A8, b"\x01" * 16)


def truncated_vdi(folder: Path) -> Path:
    disk = vdi(folder)
    os.truncate(disk, disk.stat().st_size // 2)
    return disk


def vhd_difference(folder: Path) -> Path:
    return patched(converted(raw_disk(folder / "disk"), "vpc"), -512 + 60, struct.pack(">I", 4))


def truncated_vhd(folder: Path) -> Path:
    disk = converted(raw_disk(folder / "disk"), "vpc")
    os.truncate(disk, disk.stat().st_size - 512)
    return disk


def shortened_fixed_vhd(folder: Path) -> Path:
    disk = converted(raw_disk(folder / "disk"), "vpc", "subformat=fixed")
    content = disk.read_bytes()
    return written(disk, content[:MEGABYTE] + content[-512:])


def truncated_vhdx(folder: Path) -> Path:
    disk = converted(raw_disk(folder / "disk"), "vhdx")
    os.truncate(disk, MEGABYTE)
    return disk


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (without_kernel, "without a kernel"),
        (with_a_text_for_a_kernel, "no x86 Linux boot image"),
        (truncated_file_system, "truncated: 8388608 bytes, of 16777216"),
        (xfs, "a bare XFS"),
        (nothing_to_start, "no boot sector"),
        (truncated_partition, "truncated: 4194304 bytes, of 513048576"),
        (truncated_gpt, "truncated: 4194304 bytes, of 512000512"),
        (zip_archive, "ZIP archive"),
        (ova, "tar archive"),
        (compressed_twice, "compressed twice"),
        (compressed_overlay, "backing file: '/etc/passwd'"),
        (vmdk_of_other_files, "no data of its own"),
        (vmdk_with_parent, 'stands on another file: "/etc/passwd"'),
        (vmdk_with_two_extents, "data in other files"),
        (split_vmdk, "one extent"),
        (flat_vmdk, "VMDK descriptor"),
        (vmdk_without_its_footer, "its footer is missing"),
        (vmdk_whose_footer_lies, "damaged footer"),
        (vdi_difference, "difference to another image"),
        (vdi_with_parent, "stands on another image"),
        (truncated_vdi, "truncated"),
        (vhd_difference, "difference to another image"),
        (truncated_vhd, "footer is missing"),
        (shortened_fixed_vhd, "truncated"),
        (truncated_vhdx, "qemu-img"),
    ],
)
def test_what_is_truncated_lies_or_points_elsewhere_is_refused(
    tmp_path: Path, store: Store, make: Callable[[Path], Path], complaint: str
) -> None:
    with pytest.raises(ImageError, match=complaint):
        imported(store, make(tmp_path))
    assert left_in(store) == []


def left_in(store: Store) -> list[str]:
    """Images, and what was not taken away; locks stay for the next one."""
    paths = [*store.root.glob("images/*"), *store.root.glob("building/*"), *store.root.glob("names/*")]
    return [path.name for path in paths if path.suffix != ".lock"]


def test_a_disk_on_another_one_is_flattened_if_that_one_is_named(tmp_path: Path, store: Store) -> None:
    raw = raw_disk(tmp_path / "base.raw")
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(raw), str(overlay))
    with pytest.raises(ImageError, match="backing file"):
        imported(store, overlay)
    image = imported(store, overlay, companions=(raw,))
    assert content_of(disk_of(image), "qcow2") == raw.read_bytes()


def test_a_file_named_for_nothing_is_refused_and_another_one_too(tmp_path: Path, store: Store) -> None:
    raw = raw_disk(tmp_path / "disk")
    with pytest.raises(ImageError, match="does not stand on"):
        imported(store, raw, companions=(raw_disk(tmp_path / "other"),))
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", str(overlay), "4M")
    with pytest.raises(ImageError, match="stands on another file: '/etc/passwd'"):
        imported(store, overlay, companions=(raw,))


# --- bombs


def test_a_bomb_stops_at_the_largest_size(tmp_path: Path, store: Store) -> None:
    with subprocess.Popen(["head", "-c", "300M", "/dev/zero"], stdout=subprocess.PIPE) as zeros:
        bomb = written(tmp_path / "disk.gz", subprocess.check_output(["gzip", "-1c"], stdin=zeros.stdout))
    with pytest.raises(ImageError, match=r"more than 104857600 bytes\n.*--max-size"):
        imported(store, bomb, max_size=100 * MEGABYTE)
    assert left_in(store) == []


@pytest.mark.parametrize("image_format", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_a_small_file_of_a_huge_disk_is_refused(tmp_path: Path, store: Store, image_format: str) -> None:
    huge = tmp_path / "disk"
    run("qemu-img", "create", "-q", "-f", image_format, str(huge), "1T")
    with pytest.raises(ImageError, match="more than 274877906944 bytes"):
        imported(store, huge)


def test_zeros_cost_no_space_and_other_bytes_only_what_is_there(tmp_path: Path) -> None:
    raw = raw_disk(tmp_path / "disk", size=64 * MEGABYTE)
    nearly_nothing = Budget(size=64 * MEGABYTE, space=MEGABYTE, seconds=60)
    told: list[float] = []
    content = unpacking.copy_sparse(raw, tmp_path / "copy", nearly_nothing, told.append)
    assert content.sha256 == unpacking.digest(raw, told.append)
    assert told[-1] == 1
    with pytest.raises(ImageError, match="are too few"):
        unpacking.copy_sparse(raw, tmp_path / "copy", Budget(64 * MEGABYTE, 50_000, 60), told.append)


def test_a_conversion_that_outgrows_the_space_is_stopped(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = converted(raw_disk(tmp_path / "disk"), "vdi")
    monkeypatch.setattr(
        "pytest_kvmlab.lab.importing._budget", lambda _size, _folder: Budget(2**40, 150_000, 60)
    )
    with pytest.raises(ImageError, match="the 150000 bytes that are free are too few"):
        imported(store, disk)
    assert left_in(store) == []


def test_a_decompressor_gets_no_memory_without_end(tmp_path: Path, store: Store) -> None:
    file = packed(raw_disk(tmp_path / "disk"), ("xz", "-c"))
    content = bytearray(file.read_bytes())
    # the .xz format, 3.1: a block header's size, its flags, its filter's properties: a dictionary of 4 GiB
    length = (content[12] + 1) * 4
    content[16] = 40
    content[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(content[12 : 12 + length - 4]))
    with pytest.raises(ImageError, match="cannot be unpacked"):
        imported(store, written(file, bytes(content)))


# --- bytes of chance


def test_bytes_of_chance_are_refused_or_harmless(tmp_path: Path, store: Store) -> None:
    """Sound images with other bytes in their headers are imported or refused, and nothing else happens."""
    chance = random.Random(20)  # noqa: S311 - repeatable
    raw = raw_disk(tmp_path / "disk")
    sound = [converted(raw, name).read_bytes() for name in ("qcow2", "vmdk", "vdi", "vpc", "vhdx")]
    refused = 0
    for number in range(40):
        content = bytearray(sound[number % len(sound)])
        for _ in range(chance.randrange(1, 8)):
            content[chance.randrange(600)] = chance.randrange(256)
        try:
            imported(store, written(tmp_path / "chance", bytes(content)), max_size=64 * MEGABYTE)
        except ImageError:
            refused += 1
    assert 0 < refused < 40
    assert len(left_in(store)) == 2  # the last sound one and its name


# --- interruptions


MAIN = "from pytest_kvmlab.cli import main; main()"


def started(store: Store, file: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", MAIN, "image", "import", "disk", str(file), "--replace"]
    environment = {**os.environ, "KVMLAB_STORE": str(store.root), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_who_is_interrupted_leaves_the_old_image_and_nothing_else(tmp_path: Path, store: Store) -> None:
    before = imported(store, raw_disk(tmp_path / "disk"))
    with subprocess.Popen(["head", "-c", "2G", "/dev/zero"], stdout=subprocess.PIPE) as zeros:
        endless = written(tmp_path / "long.zst", subprocess.check_output(["zstd", "-c"], stdin=zeros.stdout))
    for end in (signal.SIGINT, signal.SIGKILL):
        with started(store, endless) as importer:
            assert importer.stderr is not None
            assert "unpacking" in importer.stderr.readline()
            importer.send_signal(end)
            importer.communicate(timeout=30)
        assert importer.returncode != 0
        assert store.find("disk") == before
        store.verify(before)
    imported(store, raw_disk(tmp_path / "new", partition=(2048, 4096)))
    assert len(left_in(store)) == 2  # the image and its name


def test_a_full_store_is_told_as_such_and_stays_as_it_was(tmp_path: Path, store: Store) -> None:
    raw = raw_disk(tmp_path / "disk")
    store.root.mkdir()
    small = f"mount -t tmpfs -o size=1m kvmlab {store.root}"
    rest = f"find {store.root}/images {store.root}/building -mindepth 1 -not -name '*.lock'"
    script = f"{small} && {sys.executable} -c '{MAIN}' image import disk {raw}; {rest}"
    namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    environment = {**os.environ, "KVMLAB_STORE": str(store.root)}
    ended = subprocess.run(
        namespace, check=False, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "what to do: free some space" in ended.stderr
    assert ended.stdout == ""
