"""A disk of somebody's that starts by itself: imported, and used in place of an image."""

import hashlib
from pathlib import Path

import pytest

from pytest_kvmlab.lab.base_image import base_image
from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.importing import ImportRequest, import_image
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.guest import GuestKeys
from tests.guest.foreign_disks import converted, packed
from tests.guest.grub_disc import write_disk

SECONDS = 60
SCRIPT = """
echo "started from $root, {what}"
echo -n "Who is there? "
read answer
echo "it is $answer"
sleep 100
"""
GUEST = {"memory": "64MiB", "login": {"channel": "none"}, "ready": "console:Who is there"}


def quiet(_step: str, _share: float | None) -> None:
    pass


def disk(folder: Path, what: str) -> Path:
    folder.mkdir()
    return write_disk(folder, SCRIPT.format(what=what))


def imported(store: Store, file: Path) -> Image:
    return import_image(ImportRequest("theirs", file, None, GUEST, replace=True), store, progress=quiet)


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "packed"])
def test_an_imported_whole_disk_starts_by_its_own_boot_loader(
    tmp_path: Path, launcher: Launcher, kind: str
) -> None:
    raw = disk(tmp_path / "theirs", "whole")
    file = {"raw": raw, "packed": packed(raw, ("xz", "-c"))}.get(kind) or converted(raw, kind)
    image = imported(Store(tmp_path / "store"), file)
    assert image.manifest.disk_boots
    keys = GuestKeys(image="theirs")
    with launcher.start("theirs", keys, base_image(image), source="test", timeout=SECONDS) as guest:
        assert "<kernel>" not in guest.machine.xml_file.read_text()
        assert "started from hd0,gpt2, whole" in guest.serial.log
        guest.serial.send("somebody\r")
        guest.serial.expect("it is somebody", timeout=SECONDS)


def test_a_candidate_starts_in_place_of_a_disk_and_stays_as_it_is(tmp_path: Path, launcher: Launcher) -> None:
    store = Store(tmp_path / "store")
    before = imported(store, disk(tmp_path / "old", "old"))
    candidate = disk(tmp_path / "new", "new")
    digest = hashlib.sha256(candidate.read_bytes()).hexdigest()
    images = Images(store, {"theirs": candidate}, quiet)
    with (
        images.use("theirs") as image,
        launcher.start("theirs", GuestKeys(image="theirs"), image, source="test", timeout=SECONDS) as guest,
    ):
        assert "started from hd0,gpt2, new" in guest.serial.log
    assert hashlib.sha256(candidate.read_bytes()).hexdigest() == digest
    assert store.find("theirs") == before
    store.verify(before)
