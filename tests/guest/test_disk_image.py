"""Disks made of a tree: booted by BIOS and by UEFI, by nothing but QEMU and the boot loader on them."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import cpio
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab import disk_image, initramfs
from pytest_kvmlab.lab.unpacked import kernel_release, newest, unpack_all
from pytest_kvmlab.spec.recipe import FirstRoot
from tests.guest.test_ext4 import as_nobody
from tests.small_tar import file, folder, symlink, write

SIZE = 512 * 2**20
CMDLINE = "root=LABEL=root ro console=ttyS0 quiet word=$HOME;{x}"
FIRMWARE = Path("/usr/share/OVMF")
# Says what the boot loader and the disk are like, and ends the guest.
INIT = b"""#!/bin/sh
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in virtio_pci virtio_blk ext4; do modprobe $module; done
mount -t ext4 -o ro /dev/vda3 /mnt
echo "firmware: $([ -d /sys/firmware/efi ] && echo uefi || echo bios)"
echo "told: $(cat /proc/cmdline)"
echo "file: $(stat -c '%a %u %g %Y' /mnt/etc/secret) $(cat /mnt/etc/secret)"
poweroff -f
"""
KEYS = FirstRoot(
    kernel="linux-image-cloud-amd64",
    packages=("busybox-static", "grub-pc-bin", "grub-efi-amd64-bin"),
    files=("usr/bin/busybox",),
    modules=("virtio_pci", "virtio_blk", "ext4", "crc32c_generic"),
)


def unwatched(_step: str, _share: float | None) -> None:
    pass


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A system of a kernel, GRUB, and a first process that says what it sees."""
    work = tmp_path_factory.mktemp("tree")
    (work / "init").write_bytes(INIT)
    (pool := work / "pool").mkdir()
    root = unpack_all(newest(KEYS, unwatched), pool, work, unwatched)
    release = kernel_release(root)
    cpio.write(initramfs.entries(work, KEYS, root, release), work / "initrd")
    write(
        archive := work / "root.tar",
        folder("./"),
        file(f"./boot/vmlinuz-{release}", (root / f"boot/vmlinuz-{release}").read_bytes()),
        file(f"./boot/initrd.img-{release}", (work / "initrd").read_bytes()),
        symlink("./vmlinuz", f"boot/vmlinuz-{release}"),
        symlink("./initrd.img", f"boot/initrd.img-{release}"),
        file("./etc/secret", b"kept", mode=0o640, owner=(33, 42)),
    )
    with tarfile.open(archive, "a") as tar:
        tar.add(root / "usr/lib/grub", "./usr/lib/grub")
    return archive


def made(archive: Path, work: Path) -> Path:
    disk_image.make_disk(
        archive, work / "disk.qcow2", SIZE, CMDLINE, work, progress=lambda _step, _share: None
    )
    return work / "disk.qcow2"


@pytest.fixture(scope="module")
def disk(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tree, tmp_path_factory.mktemp("disk"))


def booted(disk: Path, *firmware: str) -> str:
    """What a guest says until it ends itself."""
    machine = ["-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config"]
    drive = ["-drive", f"if=virtio,format=qcow2,file={disk},snapshot=on"]
    console = ["-display", "none", "-serial", "stdio", "-no-reboot"]
    command = ["qemu-system-x86_64", *machine, *console, *firmware, *drive]
    ran = subprocess.run(command, check=True, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    return ran.stdout.decode(errors="replace")


def assert_complete(said: str, firmware: str) -> None:
    assert f"firmware: {firmware}" in said
    assert f"told: BOOT_IMAGE=/vmlinuz {CMDLINE}" in said
    assert "file: 640 33 42 1700000000 kept" in said


def test_a_bios_boots_it(disk: Path) -> None:
    assert_complete(booted(disk), "bios")


def test_uefi_firmware_boots_it(disk: Path, tmp_path: Path) -> None:
    shutil.copy(FIRMWARE / "OVMF_VARS_4M.fd", tmp_path / "vars")
    code = f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE / 'OVMF_CODE_4M.fd'}"
    variables = f"if=pflash,format=raw,unit=1,file={tmp_path / 'vars'}"
    assert_complete(booted(disk, "-drive", code, "-drive", variables), "uefi")


def test_another_user_in_another_folder_makes_the_same_disk(tree: Path, disk: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as elsewhere:
        archive = Path(shutil.copy(tree, elsewhere))
        Path(elsewhere).chmod(0o777)
        with as_nobody():
            work = Path(elsewhere, "work")
            work.mkdir()
            other = hashlib.sha256(made(archive, work).read_bytes()).hexdigest()
            assert [path.name for path in work.iterdir()] == ["disk.qcow2"]
    assert other == hashlib.sha256(disk.read_bytes()).hexdigest()


def test_the_kernel_that_the_disk_boots_can_be_had_alone(tree: Path) -> None:
    release, image, initrd = disk_image.kernel_of(tree)
    with tarfile.open(tree) as tar:
        for name, content in ((f"vmlinuz-{release}", image), (f"initrd.img-{release}", initrd)):
            packed = tar.extractfile(f"./boot/{name}")
            assert packed
            assert packed.read() == content


def test_without_debians_links_the_newest_kernel_counts(tmp_path: Path) -> None:
    names = [f"boot/{kind}-6.1.0-{abi}-amd64" for kind in ("vmlinuz", "initrd.img") for abi in (9, 10)]
    archive = write(tmp_path / "root.tar", *(file(name, name.encode()) for name in names))
    assert disk_image.kernel_of(archive) == ("6.1.0-10-amd64", names[1].encode(), names[3].encode())


def test_a_tree_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no kernel.*\n.*add linux-image-amd64"):
        made(write(tmp_path / "root.tar", folder("boot")), tmp_path)


def test_a_tree_without_grub_is_refused(tmp_path: Path) -> None:
    kernel = (file("boot/vmlinuz-1"), file("boot/initrd.img-1"))
    with pytest.raises(ImageError, match=r"no GRUB for i386-pc\n.*add grub-pc-bin"):
        made(write(tmp_path / "root.tar", *kernel), tmp_path)


@pytest.mark.parametrize("word", ["a'b", 'a"b', "a\\b", "é"])
def test_a_word_that_grub_would_change_is_refused(tmp_path: Path, word: str) -> None:
    archive = write(tmp_path / "root.tar", file("boot/vmlinuz-1"), file("boot/initrd.img-1"))
    with pytest.raises(ImageError, match="cannot pass this on"):
        disk_image.make_disk(
            archive, tmp_path / "d", SIZE, word, tmp_path, progress=lambda _step, _share: None
        )


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="too small"):
        disk_image.make_disk(
            tmp_path / "none", tmp_path / "d", 2**20, "", tmp_path, progress=lambda _step, _share: None
        )
