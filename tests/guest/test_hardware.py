"""The keys of a guest, each seen from inside."""

import hashlib
import os
from datetime import datetime
from pathlib import Path

import pytest

from pytest_kvmlab import Guest, MakeGuest
from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ConfigError, GuestError
from pytest_kvmlab.lab.launch import Launcher

pytestmark = pytest.mark.kvm(image="micro")

MAC = "52:54:00:12:34:68"
MIB = 2**20


def digests(*files: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_q35_with_everything(make_guest: MakeGuest, tmp_path: Path) -> None:
    raw, qcow2, disc = (
        tmp_path / "raw, with & odd 'name'.img",
        tmp_path / "more.qcow2",
        tmp_path / "tools.iso",
    )
    raw.write_bytes(b"on a raw disk".ljust(MIB, b"\0"))
    qemu_img.create_blank(qcow2, 2 * MIB)
    disc.write_bytes(b"on a disc".ljust(MIB, b"\0"))
    before = digests(raw, qcow2, disc)
    guest = make_guest(
        vcpus=2,
        memory="384MiB",
        cpu="Nehalem",
        machine="q35",
        disks=[
            {"size": "16MiB"},
            {"file": str(raw), "format": "raw", "bus": "sata"},
            {"file": str(qcow2), "format": "qcow2"},
        ],
        cdrom=str(disc),
        networks=[
            {"model": "virtio", "mac": MAC},
            {"model": "e1000"},
            {"model": "e1000e"},
            {"model": "rtl8139"},
        ],
        sound="ich9",
        clock="localtime",
        rng=True,
    )
    assert guest.succeed("grep -c ^processor /proc/cpuinfo") == "2\n"
    assert 320 < int(guest.succeed("awk '/MemTotal/ { print $2 }' /proc/meminfo")) / 1024 <= 384
    assert "Nehalem" in guest.succeed("grep 'model name' /proc/cpuinfo")
    assert "Q35" in guest.succeed("cat /sys/class/dmi/id/product_name")
    assert (
        guest.succeed("cat /sys/block/vdb/size /sys/block/vdc/size")
        == f"{16 * MIB // 512}\n{2 * MIB // 512}\n"
    )
    assert guest.succeed("head -c 13 /dev/sda") == "on a raw disk"
    assert guest.succeed("head -c 9 /dev/sr0") == "on a disc"
    guest.succeed("echo spoilt >/dev/sda; echo spoilt >/dev/vdc; sync")
    assert digests(raw, qcow2, disc) == before
    drivers = guest.succeed("for card in /sys/class/net/eth*; do readlink $card/device/driver; done").split()
    names = [driver.rpartition("/")[2] for driver in drivers]
    assert sorted(names) == ["8139cp", "e1000", "e1000e", "virtio_net"]
    assert MAC in guest.succeed("cat /sys/class/net/eth*/address").split()
    assert "pcmC0D0p" in guest.succeed("ls /dev/snd")
    assert len(guest.succeed("head -c 16 /dev/hwrng | od -An -tx1").split()) == 16
    shown = datetime.strptime(guest.succeed("hwclock -u").rpartition("  ")[0].strip(), "%a %b %d %H:%M:%S %Y")  # noqa: DTZ007  as below
    assert abs((shown - datetime.now()).total_seconds()) < 60  # noqa: DTZ005  both say the local time


@pytest.fixture
def with_tpm(make_guest: MakeGuest, launcher: Launcher) -> Guest:
    """A guest whose kernel has seen its TPM."""
    with launcher.images.use("micro") as image:
        kernel = str(image.boot.kernel)
    chatty = {"kernel": kernel, "cmdline": "console=ttyS0", "login": {"channel": "none"}}
    return make_guest(tpm=True, ready="console:ACPI: TPM2 0x", **chatty)


def test_a_tpm_is_there(with_tpm: Guest) -> None:
    assert "model=tpm-crb" in with_tpm.machine.domain.monitor("info tpm")


def test_a_tpm_keeps_its_state_until_the_guest_is_reset(with_tpm: Guest, launcher: Launcher) -> None:
    (state,) = launcher.assembly.host.folder.path.rglob(f"swtpm/{with_tpm.machine.plan.uuid}/tpm2")
    (state / "mark").touch()
    with_tpm.crash()
    assert (state / "tpm2-00.permall").exists()
    with_tpm.start()
    assert (state / "mark").exists()
    with_tpm.reset()
    assert (state / "tpm2-00.permall").exists()
    assert not (state / "mark").exists()


def test_a_pc_with_old_devices(make_guest: MakeGuest, tmp_path: Path) -> None:
    disc = tmp_path / "tools.iso"
    disc.write_bytes(b"on a disc".ljust(MIB, b"\0"))
    guest = make_guest(
        machine="pc",
        disks=[{"size": "8MiB", "bus": "ide"}],
        cdrom=str(disc),
        networks=[{"model": "rtl8139", "mac": MAC}],
        sound="es1370",
        video="cirrus",
    )
    assert "i440FX" in guest.succeed("cat /sys/class/dmi/id/product_name")
    assert guest.succeed("cat /sys/block/sda/size") == f"{8 * MIB // 512}\n"
    assert guest.succeed("head -c 9 /dev/sr0") == "on a disc"
    assert guest.succeed("cat /sys/class/net/eth0/address") == f"{MAC}\n"
    vendors = guest.succeed("cat /sys/bus/pci/devices/*/vendor").split()
    assert {"0x1013", "0x1274", "0x10ec"} <= set(vendors)  # Cirrus Logic, Ensoniq, Realtek


def test_a_guest_without_network_screen_and_randomness_is_driven_over_its_serial_line(
    make_guest: MakeGuest,
) -> None:
    guest = make_guest(networks=[], login={"channel": "serial"}, video="none", rng=False)
    assert guest.succeed("ls /sys/class/net") == "lo\n"
    assert guest.succeed("cat /sys/class/misc/hw_random/rng_available || echo none").strip() in ("", "none")
    assert not any(
        kind.startswith("0x0300") for kind in guest.succeed("cat /sys/bus/pci/devices/*/class").split()
    )
    assert guest.testinfra.file("/etc/inittab").contains("respawn")
    with pytest.raises(GuestError, match="has no network card"):
        guest.connect(80)
    before = guest.succeed("cat /proc/sys/kernel/random/boot_id")
    guest.reboot()
    assert guest.succeed("cat /proc/sys/kernel/random/boot_id") != before


def test_a_guest_without_a_channel_is_watched(make_guest: MakeGuest) -> None:
    guest = make_guest(login={"channel": "none"}, ready="console:micro: ready")
    guest.wait_for_port(22)
    with pytest.raises(ConfigError, match=r'its login says channel = "none"'):
        guest.run("true")
    guest.shutdown()
    assert not guest.machine.is_on


def test_uefi_keeps_its_variables_until_a_reset(make_guest: MakeGuest) -> None:
    guest = make_guest(firmware="uefi", login={"channel": "none"}, ready="console:BdsDxe")
    variables = guest.machine.folder / "uefi-vars.fd"
    with pytest.raises(GuestError, match="savevm before of "):
        guest.snapshot("before")
    guest.crash()
    with variables.open("r+b") as content:
        content.seek(-4, os.SEEK_END)  # behind the last variable
        content.write(b"mark")
    guest.start()
    assert variables.read_bytes().endswith(b"mark")
    guest.reset()
    assert not variables.read_bytes().endswith(b"mark")


def test_base_images_stay_as_they_are_and_guests_apart(make_guest: MakeGuest, launcher: Launcher) -> None:
    with launcher.images.use("micro") as image:
        assert image.boot.disk
        files = tuple(image.boot.disk.path.parent.iterdir())
    before = digests(*files)
    guests = [make_guest(), make_guest()]
    for number, guest in enumerate(guests):
        guest.succeed(f"echo {number} >/data/mine; sync")
    assert [guest.succeed("cat /data/mine") for guest in guests] == ["0\n", "1\n"]
    assert digests(*files) == before
