"""A block device, such as a logical volume, as a base that guests start from and never write to."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.importing import ImportRequest, import_image
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.validation import validate
from tests.guest.foreign_disks import raw_disk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a block device")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    attach = ["losetup", "--find", "--show", str(raw_disk(tmp_path / "disk"))]
    loop = Path(subprocess.run(attach, check=True, capture_output=True, text=True, timeout=30).stdout.strip())
    yield loop
    subprocess.run(["losetup", "--detach", loop], check=True, timeout=30)


def test_a_block_device_is_imported(device: Path, tmp_path: Path) -> None:
    request = ImportRequest("volume", device)
    image = import_image(request, Store(tmp_path / "store"), progress=lambda _step, _share: None)
    assert image.disk is not None
    assert image.disk.read_bytes() == device.read_bytes()


def test_guests_start_from_a_block_device_and_do_not_write_to_it(device: Path, launcher: Launcher) -> None:
    before = device.read_bytes()
    images = Images(launcher.images._store, {"micro": device}, launcher.images._progress)
    disks = [{"file": str(device), "format": "raw"}]
    keys = validate(GuestKeys, {"image": "micro", "disks": disks}, source="here")
    over = replace(launcher, images=images)
    with over.guest("web", keys, source="here", witness=lambda *_: False) as guest:
        for disk in ("/dev/vda", "/dev/vdb"):
            guest.succeed(f"tail -c 1 {disk} | grep -q $'\\x01'")
            guest.succeed(f"echo kvmlab >{disk}; sync")
    assert device.read_bytes() == before
