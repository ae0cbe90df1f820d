"""What a store does without, and what it never gives away."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_kvmlab.drivers.qemu_img import create_overlay
from pytest_kvmlab.lab.frozen import BLANKS, Frozen, Rest
from pytest_kvmlab.lab.place import Place
from pytest_kvmlab.lab.pruning import Pruning, plan_pruning, prune, remove_useless_templates
from pytest_kvmlab.lab.store import Image, Store, record
from pytest_kvmlab.lab.template_shelf import Shelf
from pytest_kvmlab.spec.manifest import DISKS, KERNEL, LOCK, Manifest

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
MIB = 2**20
NO_LIMIT = 2**60
NOTHING: Mapping[str, Path] = {}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store, and recipes for all that is put into it unless it is called `mine`."""
    folders = {name: tmp_path / name for name in ("old", "new", "child")}
    monkeypatch.setattr("pytest_kvmlab.lab.pruning.recipes", lambda: folders)
    return Store(tmp_path / "store")


def put(store: Store, name: str, identity: str, *, lists: str = "", parent: str | None = None) -> Image:
    """An image of one MiB and a little."""
    with store.building(name, waiting=pytest.fail) as folder:
        image = folder / "image"
        image.mkdir()
        (image / KERNEL).write_bytes(os.urandom(MIB))
        (image / DISKS["raw"]).write_bytes(bytes(512))
        (image / LOCK).write_text(f"busybox 1.35 {lists}\n")
        manifest = Manifest(
            name=name,
            kind="layer" if parent else "debian",
            identity=identity,
            parent=parent,
            files={path.name: record(path) for path in image.iterdir()},
        )
        return store.publish(image, manifest)


def package(store: Store, digest: str) -> Path:
    (store.root / "packages").mkdir(exist_ok=True)
    path = store.root / "packages" / f"{digest}.deb"
    path.write_bytes(b"package")
    return path


def pruned(store: Store, *, limit: int = NO_LIMIT, named_by: Mapping[str, Path] = NOTHING) -> Pruning:
    plan = plan_pruning(store, named_by, limit=limit)
    assert prune(store, plan) == plan.removed
    return plan


def used(image: Image, when: float) -> None:
    os.utime(image.lock_file, (when, when))


def why(plan: Pruning) -> dict[str, str]:
    return {item.name: item.why for item in plan.kept}


@pytest.mark.parametrize(("named", "stays"), [("old+", True), ("new+", False), ("old", False)])
def test_what_was_made_for_a_kernel_stays_while_a_lab_names_one(
    store: Store, named: str, stays: bool
) -> None:
    derived = put(store, "old+6.12.1-amd64", A)
    plan = plan_pruning(store, {named: Path("/wiki.lab.toml")}, limit=1)
    assert (derived.folder in [item.path for item in plan.kept]) is stays


def test_a_store_within_its_limit_keeps_all_that_has_a_name(store: Store) -> None:
    images = put(store, "old", A), put(store, "new", B)
    assert pruned(store).removed == ()
    assert store.images() == images[::-1]


def test_an_empty_store_has_nothing_to_remove(store: Store) -> None:
    assert pruned(store, limit=1).removed == ()


def test_over_the_limit_the_least_recently_used_goes_first(store: Store) -> None:
    old, new = put(store, "old", A), put(store, "new", B)
    used(new, 1000)
    used(old, 2000)
    plan = pruned(store, limit=3 * MIB // 2)
    assert [item.name for item in plan.removed] == ["new"]
    assert store.images() == (old,)
    assert plan.after < 3 * MIB // 2 < plan.before


def test_using_an_image_makes_it_the_last_to_go(store: Store) -> None:
    old, new = put(store, "old", A), put(store, "new", B)
    used(old, 1000)
    used(new, 2000)
    with old.lock_shared():
        pass
    pruned(store, limit=3 * MIB // 2)
    assert store.images() == (old,)


def test_an_image_that_guests_use_stays(store: Store) -> None:
    image = put(store, "old", A)
    with image.lock_shared():
        assert "guests use it" in why(pruned(store, limit=1))["old"]
    assert [item.name for item in pruned(store, limit=1).removed] == ["old"]


def test_an_image_that_was_taken_into_use_after_the_plan_stays(store: Store) -> None:
    image = put(store, "old", A)
    plan = plan_pruning(store, NOTHING, limit=1)
    with image.lock_shared():
        assert prune(store, plan) == ()
    assert store.find("old") == image


def test_an_image_that_a_lab_names_stays(store: Store) -> None:
    put(store, "old", A)
    plan = pruned(store, limit=1, named_by={"old": Path("/wiki.lab.toml")})
    assert why(plan) == {"old": "the lab /wiki.lab.toml names it"}


def test_an_image_that_no_recipe_builds_again_stays(store: Store) -> None:
    put(store, "mine", A)
    assert "no recipe builds it again" in why(pruned(store, limit=1))["mine"]


def test_the_parent_stays_as_long_as_its_child_and_goes_after_it(store: Store) -> None:
    put(store, "old", A)
    child = put(store, "child", B, parent=A)
    used(child, 2**31)
    with child.lock_shared():
        assert why(pruned(store, limit=1))["old"]
    assert [item.name for item in pruned(store, limit=1).removed] == ["child", "old"]


def test_the_nameless_parent_of_a_layer_stays(store: Store) -> None:
    parent = put(store, "old", A)
    child = put(store, "child", B, parent=A)
    newer = put(store, "old", C)
    pruned(store)
    assert set(store.folders()) == {parent.folder, child.folder, newer.folder}


def test_packages_that_no_lock_lists_go(store: Store) -> None:
    put(store, "new", A, lists=B)
    listed, unlisted = package(store, B), package(store, C)
    assert [item.path for item in pruned(store).removed] == [unlisted]
    assert listed.exists()


def test_packages_stay_while_somebody_builds(store: Store) -> None:
    put(store, "new", A)
    path = package(store, C)
    plan = plan_pruning(store, NOTHING, limit=NO_LIMIT)
    with store.building("old", waiting=pytest.fail):
        assert plan_pruning(store, NOTHING, limit=NO_LIMIT).removed == ()
        assert prune(store, plan) == ()
    assert path.exists()


def test_what_a_dead_builder_left_goes_and_what_a_living_one_makes_stays(store: Store) -> None:
    put(store, "new", A)
    dead, half = store.root / "building" / "dead", store.root / "building" / f".{B}"
    for folder in (dead, half):
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
    with store.building("old", waiting=pytest.fail) as living:
        assert {item.path for item in pruned(store).removed} == {dead, half}
        assert living.exists()


def test_a_damaged_image_can_be_removed(store: Store) -> None:
    (put(store, "old", A).folder / "manifest.json").unlink()
    pruned(store, limit=1)
    assert store.names() == ()


def test_the_disk_use_of_a_copy_is_not_counted_twice(store: Store) -> None:
    image = put(store, "old", A)
    before = pruned(store).before
    os.link(image.folder / KERNEL, store.root / "images" / "second name")
    assert pruned(store).before - before < MIB


# Templates that are kept for later runs


def template(store: Store, image: Image, key: str, *, when: float = 2**31, folder: Path) -> Path:
    """A template of one MiB whose guest has a disk on that of an image; the folder is the run's."""
    own = folder / key
    own.mkdir()
    create_overlay(image.folder / DISKS["raw"], "raw", own / "disk.qcow2")
    create_overlay(own / "disk.qcow2", "qcow2", own / BLANKS.format(0))
    (own / "state").write_bytes(os.urandom(MIB))
    (folder / "memory").write_bytes(b"memory")
    guest = Frozen(own, folder / "memory", "", Rest(None, "", "serial", agent=False), (own / "disk.qcow2",))
    Shelf(store.templates).keep(key, [guest])
    os.utime(store.templates / key, (when, when))
    return store.templates / key


def test_a_template_is_shown_with_its_image_and_stays_while_there_is_room(
    store: Store, tmp_path: Path
) -> None:
    kept = template(store, put(store, "old", A), "one", folder=tmp_path)
    plan = pruned(store)
    assert [(item.kind, item.name) for item in plan.kept] == [("image", "old"), ("template", "old")]
    assert plan.after > 2 * MIB
    assert kept.exists()


@pytest.mark.parametrize(
    ("error", "stays"),
    [(OSError(errno.ENOSPC, "full"), True), (OSError(errno.EIO, "broken"), False), (ValueError("no"), False)],
)
def test_a_template_goes_if_it_is_damaged_but_not_if_its_copy_has_no_room(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, stays: bool
) -> None:
    def lent(_source: Path, _place: Place) -> list[Frozen]:
        raise error

    kept = template(store, put(store, "old", A), "one", folder=tmp_path)
    monkeypatch.setattr("pytest_kvmlab.lab.template_shelf._lent", lent)
    place = Place(tmp_path / "place", tmp_path / "place")
    assert Shelf(store.templates).lend("one", place) is None
    assert kept.exists() is stays


def test_over_the_limit_templates_go_before_images_the_least_recently_used_first(
    store: Store, tmp_path: Path
) -> None:
    image = put(store, "old", A)
    later = template(store, image, "later", when=2000, folder=tmp_path)
    first = template(store, image, "first", when=1000, folder=tmp_path)
    plan = pruned(store, limit=5 * MIB // 2)
    assert [item.path for item in plan.removed] == [first]
    assert later.exists()
    assert [item.kind for item in pruned(store, limit=1).removed] == ["image", "template"]
    assert store.folders() == ()


def test_a_template_goes_with_its_image(store: Store, tmp_path: Path) -> None:
    kept = template(store, put(store, "old", A), "one", folder=tmp_path)
    put(store, "old", B)
    assert [item.why for item in pruned(store).removed if item.kind == "template"] == ["its image is gone"]
    assert not kept.exists()


def test_a_template_goes_when_somebody_removes_its_image_and_others_stay(
    store: Store, tmp_path: Path
) -> None:
    image, other = put(store, "old", A), put(store, "new", B)
    kept, still = (template(store, each, each.name, folder=tmp_path) for each in (image, other))
    assert store.remove(image.folder, named=True)
    remove_useless_templates(store)
    assert (kept.exists(), still.exists()) == (False, True)


@pytest.mark.parametrize("file", ["inventory.json", "0/disk.qcow2"])
def test_a_damaged_template_and_half_of_one_go(store: Store, tmp_path: Path, file: str) -> None:
    kept = template(store, put(store, "old", A), "one", folder=tmp_path)
    (kept / file).write_bytes(b"{")
    half = store.templates / ".new-half"
    half.mkdir()
    assert [(item.kind, item.path) for item in pruned(store).removed] == [
        ("template", kept),
        ("leftover", half),
    ]
    assert not kept.exists()
    assert not half.exists()


def test_a_folder_of_templates_that_cannot_be_read_keeps_nothing_else_from_going(store: Store) -> None:
    put(store, "old", A)
    store.templates.write_bytes(b"as unreadable, for root too, as a folder of another user")
    assert [item.kind for item in pruned(store, limit=1).removed] == ["image"]
