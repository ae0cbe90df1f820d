"""The image store, with small files in place of kernels: its promises do not depend on their content."""

import errno
import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.recipes import recipe_digest
from pytest_kvmlab.lab.store import Image, OtherVersionsImage, Store, record
from pytest_kvmlab.spec.manifest import DISKS, INITRD, KERNEL, Manifest
from pytest_kvmlab.spec.recipe import load_recipe

DISK = DISKS["qcow2"]
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def never() -> None:
    pytest.fail("nobody else builds")


def put(store: Store, name: str = "tiny", identity: str = A, content: bytes = b"kernel") -> Image:
    with store.building(name, waiting=never) as folder:
        return store.publish(files(folder / "image", content), manifest(folder / "image", name, identity))


def files(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    for file in (KERNEL, INITRD, DISK):
        (folder / file).write_bytes(content)
    return folder


def manifest(folder: Path, name: str, identity: str) -> Manifest:
    return Manifest(
        name=name,
        kind="initramfs",
        identity=identity,
        recipe="0" * 64,
        packages={"busybox-static": "1"},
        kernel_version="6.1",
        files={KERNEL: record(folder / KERNEL), INITRD: record(folder / INITRD), DISK: record(folder / DISK)},
        cmdline="quiet",
        guest={"memory": "256MiB"},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_published_image_is_found_as_it_was_published(store: Store) -> None:
    image = put(store)
    assert store.find("tiny") == image
    assert store.images() == (image,)
    assert (image.folder / KERNEL).read_bytes() == b"kernel"
    store.verify(image)


def test_a_store_that_does_not_exist_has_no_images(store: Store) -> None:
    assert store.find("tiny") is None
    assert store.images() == ()


def test_no_name_leads_out_of_the_store(store: Store) -> None:
    image = put(store)
    assert store.find(f"../images/{image.folder.name}") is None


@pytest.mark.parametrize("file", [KERNEL, INITRD, DISK])
def test_a_changed_file_is_named(store: Store, file: str) -> None:
    image = put(store)
    (image.folder / file).chmod(0o644)
    (image.folder / file).write_bytes(b"Kernel")
    with pytest.raises(ImageError, match=f"{file}: its content was changed"):
        store.verify(image)


def test_a_truncated_or_missing_file_is_seen_without_reading_it(store: Store) -> None:
    image = put(store)
    (image.folder / INITRD).chmod(0o644)
    os.truncate(image.folder / INITRD, 3)
    with pytest.raises(ImageError, match="initrd: its size is wrong"):
        store.find("tiny")
    (image.folder / INITRD).unlink()
    with pytest.raises(ImageError, match="initrd: it is missing"):
        store.find("tiny")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"files": {"../../etc/passwd": {}}}'])
def test_a_damaged_manifest_is_refused(store: Store, text: str) -> None:
    image = put(store)
    (image.folder / "manifest.json").chmod(0o644)
    (image.folder / "manifest.json").write_text(text)
    with pytest.raises(ImageError, match=r"manifest\.json"):
        store.find("tiny")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([INITRD], "nothing that a guest could boot"),
        ([KERNEL, "../../etc/passwd"], "no image has"),
        ([*DISKS.values()], "two disks"),
    ],
)
def test_a_manifest_with_impossible_files_is_refused(store: Store, names: list[str], told: str) -> None:
    with store.building("tiny", waiting=never) as folder:
        whole = manifest(files(folder / "image", b"kernel"), "tiny", A)
        record = whole.files[KERNEL]
        impossible = whole.model_copy(update={"files": dict.fromkeys(names, record)})
        with pytest.raises(ImageError, match=told):
            store.publish(folder / "image", impossible)


def of_another_version(image: Image) -> None:
    """Let an image have a key that this version does not know."""
    file = image.folder / "manifest.json"
    file.chmod(0o644)
    file.write_text(json.dumps({**json.loads(file.read_text()), "arch": "amd64"}))


def test_an_image_of_another_version_is_not_called_damaged(store: Store) -> None:
    of_another_version(put(store))
    with pytest.raises(
        OtherVersionsImage, match=r"made by another version .*arch: unknown key(.|\n)*build it again"
    ):
        store.find("tiny")


def test_an_image_of_another_version_is_built_again_if_there_is_a_recipe(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_another_version(put(store))
    monkeypatch.setattr("pytest_kvmlab.lab.build.recipes", lambda: {"tiny": tmp_path / "tiny"})
    with pytest.raises(ConfigError, match="there is no recipe in"):  # so it tried
        ensure("tiny", store, progress=lambda _step, _share: None)


def test_an_image_is_built_again_when_a_recipe_that_it_grows_from_has_changed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = {"below": tmp_path / "below", "tiny": tmp_path / "tiny"}
    for folder, origin in zip(shipped.values(), ("bottom", "below"), strict=True):
        folder.mkdir()
        (folder / "image.toml").write_text(f'kind = "layer"\nfrom = "{origin}"\n')
        (folder / "setup.sh").write_text("#!/bin/sh\n")
    monkeypatch.setattr("pytest_kvmlab.lab.recipes.recipes", lambda: shipped)
    monkeypatch.setattr("pytest_kvmlab.lab.build.recipes", lambda: shipped)
    put(store, "bottom", C)
    for (name, folder), identity in zip(shipped.items(), (A, B), strict=True):
        with store.building(name, waiting=never) as room:
            image = files(room / "image", b"kernel")
            told = {"recipe": recipe_digest(load_recipe(folder))}
            store.publish(image, manifest(image, name, identity).model_copy(update=told))
    assert ensure("tiny", store, progress=lambda _step, _share: never()) == store.find("tiny")
    (shipped["below"] / "setup.sh").write_text("#!/bin/sh\necho new\n")
    with pytest.raises(ImageError, match="building the image 'below' needs a guest"):  # so it tried
        ensure("tiny", store, progress=lambda _step, _share: None)


def test_a_damaged_image_is_replaced(store: Store) -> None:
    image = put(store)
    (image.folder / KERNEL).chmod(0o644)
    (image.folder / KERNEL).write_bytes(b"broken")
    assert store.intact(A) is None
    assert put(store) == image
    store.verify(image)


def test_an_interrupted_build_leaves_nothing_that_is_found_or_stays(store: Store) -> None:
    abandoned = store.root / "building" / "tiny"
    abandoned.mkdir(parents=True)
    files(abandoned / "image", b"half")
    assert store.images() == ()
    put(store)
    assert not abandoned.exists()


def test_the_second_builder_says_that_it_waits_and_goes_on(store: Store) -> None:
    told, entered = threading.Event(), threading.Event()

    def second() -> None:
        with store.building("tiny", waiting=told.set):
            entered.set()

    with store.building("tiny", waiting=never):
        builder = threading.Thread(target=second)
        builder.start()
        assert told.wait(10)
        assert not entered.is_set()
    builder.join(10)
    assert entered.is_set()


def test_a_superseded_image_goes_when_no_guest_uses_it(store: Store) -> None:
    old = put(store, identity=A)
    with old.lock_shared():
        new = put(store, identity=B, content=b"newer")
        assert (old.folder / KERNEL).read_bytes() == b"kernel"
    assert store.find("tiny") == new
    store_again = put(store, "other", identity=C)
    assert {path.name for path in store.folders()} == {B, store_again.folder.name}


def test_a_damaged_image_in_use_is_not_replaced(store: Store) -> None:
    with put(store).lock_shared(), pytest.raises(ImageError, match="in use by guests"):
        put(store)


def test_a_removed_image_cannot_be_locked(store: Store) -> None:
    old = put(store, identity=A)
    put(store, identity=B)
    with pytest.raises(ImageError, match="was removed"), old.lock_shared():
        pass


def test_the_lock_of_an_image_ends_with_its_block(store: Store) -> None:
    image = put(store)
    with image.lock_shared():
        pass
    assert store.in_use(image.folder) is False


def test_a_store_that_cannot_be_made_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="--kvm-store"):
        put(Store(tmp_path / "file" / "store"))


def test_a_full_disk_is_told_as_such(store: Store) -> None:
    with pytest.raises(ImageError, match="free some space"), store.building("tiny", waiting=never):
        Path("/dev/full").write_bytes(b"x")


def test_an_unknown_image_names_the_nearest_one(store: Store) -> None:
    with pytest.raises(ImageError, match="did you mean 'micro'"):
        ensure("mirco", store, progress=lambda _step, _share: never())


def test_a_file_system_without_locks_is_told_as_such(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put(store)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)  # no file system of this machine can be made to refuse
    with pytest.raises(ImageError, match=r"has no locks.*\n(.*\n)*.*--kvm-store"), image.lock_shared():
        pass
    with pytest.raises(ImageError, match="has no locks"):
        put(store)


def test_an_image_is_dated_when_somebody_begins_to_use_it(store: Store) -> None:
    image = put(store)
    os.utime(image.lock_file, (1, 1))
    with image.lock_shared():
        assert image.lock_file.stat().st_mtime > 1


def test_what_got_a_name_meanwhile_is_not_removed(store: Store) -> None:
    old = put(store, identity=A)
    with old.lock_shared():
        put(store, identity=B)
        assert not store.remove(old.folder)
    with store.building("tiny", waiting=never):
        store.name(old)
    assert not store.remove(old.folder)
    assert store.find("tiny") == old
    assert store.remove(old.folder, named=True)
    assert store.names() == ()


def test_an_image_that_is_being_built_anew_is_not_removed(store: Store) -> None:
    image = put(store)
    with store.building("tiny", waiting=never):
        assert not store.remove(image.folder, named=True)
    assert store.find("tiny") == image


def test_a_file_of_an_image_leads_to_it(store: Store, tmp_path: Path) -> None:
    image = put(store)
    assert store.holder(image.folder / KERNEL) == image
    assert store.holder(tmp_path / "elsewhere") is None


def test_verifying_tells_how_far_it_is(store: Store) -> None:
    shares: list[float | None] = []
    store.verify(put(store, content=b"x" * 1000), lambda _step, share: shares.append(share))
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
