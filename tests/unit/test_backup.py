"""Copies, exported files and what comes back from them, with small files in place of kernels."""

import gzip
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.backup import export_image, restore_image
from pytest_kvmlab.lab.copies import copy
from pytest_kvmlab.lab.store import Image, Store, record
from pytest_kvmlab.spec.manifest import DISKS, KERNEL, MANIFEST, Manifest, parse_manifest

DISK, RAW = DISKS["qcow2"], DISKS["raw"]
A, B, C = ("a" * 64, "b" * 64, "c" * 64)
# As those of the shipped images, written in each of the forms that are read into something else.
GUEST = {
    "memory": "256MiB",
    "host_key": "generated",
    "login": {"user": "root"},
    "ready": "test -e /run/settled",
}


def silent(_step: str, _share: float | None) -> None:
    pass


def put(store: Store, name: str, identity: str, fill: Callable[[Path], None], **told: object) -> Image:
    with store.building(name, waiting=pytest.fail) as folder:
        image = folder / "image"
        image.mkdir()
        fill(image)
        files = {path.name: record(path) for path in sorted(image.iterdir())}
        keys = {"name": name, "kind": "import", "identity": identity, "files": files, **told}
        return store.publish(image, Manifest.model_validate(keys))


def disk_with(text: bytes) -> Callable[[Path], None]:
    """Fills an image with a kernel and a qcow2 disk, which begins with a text."""

    def fill(image: Path) -> None:
        (image / KERNEL).write_bytes(b"kernel" + text)
        raw = image / "raw"
        raw.write_bytes(text.ljust(2**20, b"\0"))
        qemu_img.convert(raw, "raw", image / DISK, "qcow2")
        raw.unlink()

    return fill


def content(image: Image, tmp_path: Path) -> bytes:
    assert image.disk
    qemu_img.convert(image.disk, "qcow2", tmp_path / "content.raw", "raw")
    return (tmp_path / "content.raw").read_bytes().rstrip(b"\0")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def usual_umask() -> Iterator[None]:
    umask = os.umask(0o022)
    yield
    os.umask(umask)


@pytest.fixture
def image(store: Store) -> Image:
    return put(store, "wiki", A, disk_with(b"first"), guest=GUEST)


@pytest.fixture
def exported(image: Image, tmp_path: Path) -> Path:
    export_image(image, tmp_path / "wiki.tar.gz", progress=silent)
    return tmp_path / "wiki.tar.gz"


def members(exported: Path) -> dict[str, bytes]:
    with tarfile.open(exported) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in files.items() if file}


def packed(
    file: Path, content: Mapping[str, bytes], *, change: Callable[[tarfile.TarInfo], None] = lambda _: None
) -> Path:
    with tarfile.open(file, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, data in content.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            change(header)
            archive.addfile(header, io.BytesIO(data))
    return file


def with_manifest(exported: Path, **told: object) -> Path:
    """The same archive with another manifest."""
    inside = members(exported)
    changed = parse_manifest(inside[MANIFEST], source="test").model_copy(update=told)
    return packed(exported, {**inside, MANIFEST: changed.to_json().encode()})


def refused(file: Path, store: Store, told: str) -> None:
    """Restoring fails, and leaves nothing behind."""
    with pytest.raises(ImageError, match=told):
        restore_image(file, store, name="back", progress=silent)
    assert "back" not in store.names()
    assert [path for path in (store.root / "building").glob("*") if path.is_dir()] == []


def test_an_export_that_is_interrupted_as_early_as_can_be_leaves_nothing(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def interrupted(path: str | Path, mode: int = 0o777) -> None:
        make(path, mode)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_image(image, out / "wiki.tar.gz", progress=silent)
    assert not list(out.iterdir())


def test_a_restored_image_is_the_exported_one(image: Image, exported: Path, tmp_path: Path) -> None:
    elsewhere = Store(tmp_path / "elsewhere")
    back = restore_image(exported, elsewhere, progress=silent)
    assert (back.sha256, back.manifest) == (image.sha256, image.manifest)
    elsewhere.verify(back)


def test_an_export_is_a_tar_archive_that_begins_with_its_manifest(image: Image, exported: Path) -> None:
    inside = members(exported)
    assert list(inside) == [MANIFEST, DISK, KERNEL]
    assert parse_manifest(inside[MANIFEST], source="test") == image.manifest


def test_equal_images_give_equal_exports(image: Image, exported: Path, tmp_path: Path) -> None:
    export_image(image, tmp_path / "again", progress=silent)
    assert (tmp_path / "again").read_bytes() == exported.read_bytes()


def test_a_restored_image_may_have_another_name(store: Store, exported: Path) -> None:
    back = restore_image(exported, store, name="old-wiki", progress=silent)
    assert (back.name, store.find("old-wiki")) == ("old-wiki", back)
    assert store.find("wiki")


def test_a_layer_is_exported_whole(store: Store, image: Image, tmp_path: Path) -> None:
    def grow(folder: Path) -> None:
        assert image.disk
        below = folder.parent / image.folder.name  # where it is seen from its final place
        below.symlink_to(image.folder)
        arguments = ["-f", "qcow2", "-F", "qcow2", "-b", f"../{image.folder.name}/{DISK}"]
        subprocess.run(["qemu-img", "create", "-q", *arguments, folder / DISK], check=True)
        below.unlink()

    layer = put(store, "layer", B, grow, kind="layer", parent=A)
    assert layer.parent == image
    export_image(layer, tmp_path / "layer.tar.gz", progress=silent)
    back = restore_image(tmp_path / "layer.tar.gz", Store(tmp_path / "elsewhere"), progress=silent)
    assert back.parent is None
    assert content(back, tmp_path) == b"first"


def test_holes_stay_holes(store: Store, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / RAW).write_bytes(b"boot")
        os.truncate(folder / RAW, 64 * 2**20)

    export_image(put(store, "sparse", C, fill), tmp_path / "sparse", progress=silent)
    back = restore_image(tmp_path / "sparse", Store(tmp_path / "elsewhere"), progress=silent)
    assert back.disk
    assert back.disk.stat().st_size == 64 * 2**20
    assert back.disk.stat().st_blocks * 512 < 4 * 2**20


@pytest.mark.parametrize("left", [0, 3, 30, 200, -200, -20, -8, -1])
def test_a_truncated_export_is_refused(store: Store, exported: Path, left: int) -> None:
    exported.write_bytes(exported.read_bytes()[:left])
    refused(exported, store, "truncated|damaged")


def test_a_flipped_bit_is_seen(store: Store, exported: Path) -> None:
    whole = bytearray(exported.read_bytes())
    for place in range(20, len(whole), len(whole) // 20):
        exported.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        refused(exported, store, "^(?!the image store)")


@pytest.mark.parametrize(
    "change", [lambda whole: whole[:-8] + b"\0\0\0\0" + whole[-4:], lambda whole: whole + b"junk"]
)
def test_what_is_wrong_behind_the_last_file_is_told_of_the_archive(
    store: Store, exported: Path, change: Callable[[bytes], bytes]
) -> None:
    exported.write_bytes(change(exported.read_bytes()))
    refused(exported, store, "is damaged, or no exported image")


@pytest.mark.parametrize(("login", "mode"), [({"password": "secret"}, 0o600), ({"user": "root"}, 0o644)])
@pytest.mark.usefixtures("usual_umask")
def test_a_password_is_exported_for_nobody_else(
    store: Store, tmp_path: Path, login: dict[str, str], mode: int
) -> None:
    export_image(
        put(store, "one", B, disk_with(b"one"), guest={"login": login}), tmp_path / "one", progress=silent
    )
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == mode


def test_files_that_an_image_needs_beside_it_are_found_again_where_it_is_trusted(
    store: Store, tmp_path: Path
) -> None:
    guest = {"login": {"user": "root", "key": str(tmp_path / "id_ed25519")}}
    export_image(put(store, "one", B, disk_with(b"one"), guest=guest), tmp_path / "one", progress=silent)
    elsewhere = Store(tmp_path / "elsewhere")
    refused(tmp_path / "one", elsewhere, r"names files outside of it: \S+/id_ed25519")
    back = restore_image(tmp_path / "one", elsewhere, trusted=True, progress=silent)
    assert back.manifest.guest == guest


def test_a_changed_file_is_named(store: Store, exported: Path) -> None:
    inside = members(exported)
    refused(
        packed(exported, {**inside, KERNEL: inside[KERNEL].upper()}),
        store,
        "vmlinux in the archive was changed",
    )


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
)
def test_what_is_no_plain_file_is_refused(store: Store, exported: Path, kind: bytes) -> None:
    def change(header: tarfile.TarInfo) -> None:
        if header.name == DISK:
            header.type, header.linkname = kind, "/etc/passwd"

    refused(
        packed(exported, members(exported), change=change), store, "where the file 'disk.qcow2' should be"
    )


@pytest.mark.parametrize("name", ["/etc/passwd", "../../evil", "vmlinux/", "x" * 300])
def test_a_file_of_another_name_is_refused(store: Store, exported: Path, name: str) -> None:
    inside = members(exported)
    refused(
        packed(exported, {MANIFEST: inside[MANIFEST], name: inside[DISK]}),
        store,
        "where the file 'disk.qcow2'",
    )


def test_more_files_than_the_manifest_lists_are_refused(store: Store, exported: Path) -> None:
    refused(packed(exported, {**members(exported), "more": b"x"}), store, "more in it than its manifest says")


def test_a_bomb_after_the_end_is_refused(store: Store, exported: Path) -> None:
    whole = gzip.decompress(exported.read_bytes())
    exported.write_bytes(gzip.compress(whole + bytes(2**26)))
    refused(exported, store, "more in it than its manifest says")


def test_a_size_that_lies_is_refused(store: Store, exported: Path) -> None:
    inside = members(exported)
    refused(
        packed(exported, {**inside, KERNEL: inside[KERNEL] + b"x"}),
        store,
        "has 12 bytes, but its manifest says 11",
    )


def test_an_image_larger_than_the_room_is_refused_before_it_is_unpacked(store: Store, exported: Path) -> None:
    files = parse_manifest(members(exported)[MANIFEST], source="test").files
    huge = {**files, DISK: files[DISK].model_copy(update={"size": 2**60})}
    refused(with_manifest(exported, files=huge), store, "needs .* MiB, and the store has")


def test_an_endless_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    refused(packed(tmp_path / "bomb", {MANIFEST: b" " * 2**23}), store, "manifest .* is too large")


def test_a_disk_that_names_another_file_is_refused(store: Store, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(2**20))
        qemu_img.create_overlay(tmp_path / "secret", "raw", folder / DISK)

    export_image(put(store, "evil", B, fill), tmp_path / "evil", progress=silent)
    refused(tmp_path / "evil", store, "backing file|stands on")


def test_a_raw_file_in_place_of_the_qcow2_disk_is_refused(store: Store, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / DISK).write_bytes(bytes(512))

    image = put(store, "odd", B, fill)
    export_image(image, tmp_path / "odd", progress=silent)
    refused(tmp_path / "odd", store, "qcow2")


@pytest.mark.parametrize(
    "guest",
    [
        {"cdrom": "/etc/passwd"},
        {"kernel": "secret"},
        {"disks": [{"file": "/dev/sda", "format": "raw"}]},
        {"login": {"user": "root", "key": "/root/.ssh/id_ed25519"}},
    ],
)
def test_a_manifest_that_names_files_of_this_machine_is_refused(
    store: Store, exported: Path, guest: dict[str, object]
) -> None:
    refused(with_manifest(exported, guest=guest), store, "names files outside of it")


def test_a_layer_without_the_image_below_it_is_refused(store: Store, exported: Path) -> None:
    refused(with_manifest(exported, kind="layer", parent=B), store, "stands on another image's")


def test_what_is_no_export_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(4096))
    refused(tmp_path / "noise", store, "damaged, or no exported image")
    refused(tmp_path / "missing", store, "cannot be read: No such file")
    refused(tmp_path, store, "cannot be read: Is a directory")


def test_a_damaged_image_is_not_exported(image: Image, tmp_path: Path) -> None:
    (image.folder / KERNEL).chmod(0o644)
    (image.folder / KERNEL).write_bytes(b"KERNELfirst")
    (tmp_path / "backup").write_bytes(b"the last good one")
    with pytest.raises(ImageError, match="vmlinux: its content was changed"):
        export_image(image, tmp_path / "backup", progress=silent)
    assert (tmp_path / "backup").read_bytes() == b"the last good one"
    assert not list(tmp_path.glob(".backup*"))


def test_an_interrupted_export_leaves_the_old_file_and_nothing_else(image: Image, tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(b"old")

    def interrupt(_step: str, share: float | None) -> None:
        if share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_image(image, tmp_path / "backup", progress=interrupt)
    assert (tmp_path / "backup").read_bytes() == b"old"
    assert not list(tmp_path.glob(".backup*"))


def test_an_export_into_no_folder_says_so(image: Image, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be written: No such file"):
        export_image(image, tmp_path / "missing" / "backup", progress=silent)


def test_a_copy_shares_its_files_and_stays_when_the_first_is_built_anew(store: Store, image: Image) -> None:
    kept = copy(image, "kept", store, progress=silent)
    assert (kept.folder / DISK).samefile(image.folder / DISK)
    newer = put(store, "wiki", B, disk_with(b"second"))
    assert (store.find("wiki"), store.find("kept")) == (newer, kept)
    assert not image.folder.exists()
    store.verify(kept)


def test_a_copy_where_there_are_no_hard_links_has_files_of_its_own(
    store: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)  # root, as which tests run, may link whatever there is
    kept = copy(image, "kept", store, progress=silent)
    assert not (kept.folder / DISK).samefile(image.folder / DISK)
    store.verify(kept)


def test_a_name_that_is_taken_is_given_up_only_when_told(store: Store, image: Image) -> None:
    other = put(store, "other", B, disk_with(b"other"))
    with pytest.raises(ImageError, match="there is another image 'other'"):
        copy(image, "other", store, progress=silent)
    assert store.find("other") == other
    assert copy(image, "other", store, replace=True, progress=silent) == store.find("other")


def test_copying_again_gives_the_same_copy(store: Store, image: Image) -> None:
    assert copy(image, "kept", store, progress=silent) == copy(image, "kept", store, progress=silent)


def test_the_name_of_a_recipe_is_no_name_for_a_copy(store: Store, image: Image) -> None:
    with pytest.raises(ImageError, match="'micro' is the name of a recipe"):
        copy(image, "micro", store, progress=silent)


def test_a_damaged_image_is_replaced_by_its_backup(store: Store, image: Image, exported: Path) -> None:
    (image.folder / KERNEL).unlink()
    back = restore_image(exported, store, progress=silent)
    assert back == image
    store.verify(back)
