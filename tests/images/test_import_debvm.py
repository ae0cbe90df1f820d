"""An image that another tool has made: debvm-create's bare ext4, which has a kernel but no boot loader."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvmlab.drivers.ssh_keys import generate_key_pair
from pytest_kvmlab.lab.base_image import base_image
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.importing import ImportRequest, import_image
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.guest_file import load_guest_file

BOOT_SECONDS = 180
GUEST = """
[guest]
memory = "512MiB"
host_key = "learn"
ready = "unit:ssh.service"
login = { user = "root", key = "id_ed25519", channel = "serial" }
"""

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    launcher = request.config.pluginmanager.getplugin("kvmlab-session").run.launcher
    assert isinstance(launcher, Launcher)
    folder = tmp_path_factory.mktemp("debvm")
    request_ = ImportRequest("debvm", made_by_debvm(folder), guest=load_guest_file(guest_file(folder)))
    image = import_image(request_, Store(folder / "store"), progress=lambda _step, _share: None)
    with launcher.start(
        "debvm", GuestKeys(image="debvm"), base_image(image), source="debvm-create", timeout=BOOT_SECONDS
    ) as started:
        yield started


def made_by_debvm(folder: Path) -> Path:
    key = generate_key_pair()
    key.save(folder / "id_ed25519")
    (folder / "id_ed25519.pub").write_text(f"{key.public}\n")
    disk = folder / "rootfs.ext4"
    subprocess.run(
        ["debvm-create", "-r", "bookworm", "-k", folder / "id_ed25519.pub", "-o", disk],
        check=True,
        timeout=600,
    )
    return disk


def guest_file(folder: Path) -> Path:
    file = folder / "guest.toml"
    file.write_text(GUEST)
    return file


def test_it_answers_over_ssh(guest: Guest) -> None:
    assert "bookworm" in guest.ssh.run("cat /etc/os-release").stdout
    assert guest.ssh.run("findmnt -no SOURCE /").stdout == "/dev/vda\n"


def test_it_answers_over_the_serial_line(guest: Guest) -> None:
    assert guest.serial.run("cat /etc/hostname").stdout == "testvm\n"


def test_it_runs_the_kernel_that_was_found_in_it(guest: Guest) -> None:
    release = guest.ssh.run("uname -r").stdout.strip()
    assert guest.ssh.run(f"test -e /boot/vmlinuz-{release}").exit_status == 0
