"""Images that are another one's disk and what a script has changed there, in a guest that runs."""

import hashlib
import shutil
from pathlib import Path

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.base_image import base_image
from pytest_kvmlab.lab.build import build, ensure
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.layering import Rescue
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.manifest import DISKS, INITRD, KERNEL

SERIAL = '[guest]\nmemory = "256MiB"\nlogin = { channel = "serial" }'
SETUP = """#!/bin/sh
set -eu
echo "writing a note"
echo layered >/data/note
"""

# Longer than one command may be, with what shells and terminals have a meaning for
FILLER = "".join(f": 'line {number} of \"many\" \\t$HOME \u00e4'\n" for number in range(700))


@pytest.fixture(scope="module")
def store(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of the tests' own that has the run's micro image."""
    shelf = Store(tmp_path_factory.mktemp("store"))
    micro = ensure("micro", launcher.images._store, progress=unwatched)
    shutil.copytree(micro.folder, shelf.root / "images" / micro.folder.name)
    (shelf.root / "names").mkdir()
    (shelf.root / "names" / "micro").symlink_to(Path("..", "images", micro.folder.name))
    return shelf


@pytest.fixture(scope="module")
def layer(store: Store, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Image:
    recipe = written(tmp_path_factory.mktemp("recipes") / "noted", SETUP, more=SERIAL)
    return build(recipe, store, guests=launcher, progress=unwatched)


def unwatched(_step: str, _share: float | None) -> None:
    pass


def written(folder: Path, script: str, origin: str = "micro", more: str = "") -> Path:
    folder.mkdir()
    (folder / "image.toml").write_text(f'kind = "layer"\nfrom = "{origin}"\n{more}\n')
    (folder / "setup.sh").write_text(script)
    return folder


def failing(recipe: Path, store: Store, launcher: Launcher, rescue: Rescue | None = None) -> ImageError:
    with pytest.raises(ImageError) as failure:
        build(recipe, store, guests=launcher, rescue=rescue, progress=unwatched)
    assert store.find(recipe.name) is None
    return failure.value


def test_a_guest_of_a_layer_has_what_was_written(layer: Image, launcher: Launcher) -> None:
    started = launcher.start("layer", GuestKeys(image="noted"), base_image(layer), source="test", timeout=60)
    with started as guest:
        assert guest.succeed("cat /data/note") == "layered\n"


def test_a_layer_names_its_parent_as_seen_from_its_folder(layer: Image, store: Store) -> None:
    parent = store.find("micro")
    assert parent
    assert layer.manifest.parent == parent.manifest.identity
    assert [image.name for image in layer.lineage()] == ["noted", "micro"]
    info = qemu_img.info(layer.folder / DISKS["qcow2"], "qcow2")
    assert info.backing == f"../{parent.folder.name}/{DISKS['qcow2']}"
    assert info.actual_size < 2**21
    assert {KERNEL, INITRD} <= layer.manifest.files.keys()
    store.verify(layer)


def test_a_layer_that_did_not_change_is_not_built_again(
    layer: Image, store: Store, launcher: Launcher, tmp_path: Path
) -> None:
    steps: list[str] = []
    again = build(
        written(tmp_path / "noted", SETUP, more=SERIAL),
        store,
        guests=launcher,
        progress=lambda step, _: steps.append(step),
    )
    assert (again, steps) == (layer, [])


def test_a_layer_on_a_layer_has_what_both_wrote_also_over_a_serial_line(
    layer: Image, store: Store, launcher: Launcher, tmp_path: Path
) -> None:
    script = f"{SETUP}{FILLER}cat /data/note >/data/copy\n"
    recipe = written(tmp_path / "twice", script, layer.name)
    upper = build(recipe, store, guests=launcher, progress=unwatched)
    started = launcher.start("upper", GuestKeys(image="twice"), base_image(upper), source="test", timeout=60)
    with started as guest:
        assert guest.spec.login.channel == "serial"
        assert guest.succeed("cat /data/note /data/copy") == "layered\nlayered\n"


def test_a_failing_setup_is_told_with_its_output_and_can_be_looked_at(
    store: Store, launcher: Launcher, tmp_path: Path
) -> None:
    seen: list[str] = []

    def look(guest: Guest) -> None:
        seen.append(guest.succeed("cat /data/half"))

    script = "#!/bin/sh\nset -eu\necho half >/data/half\nprintf 'no such \\033[31mthing\\n' >&2\nexit 7\n"
    recipe = written(tmp_path / "failing", script)
    error = failing(recipe, store, launcher, look)
    assert "setup.sh of layer 'failing' ended with exit status 7" in error.message
    assert error.looked_at == ("no such \\x1b[31mthing",)
    assert f"kvmlab image build {recipe} --shell" in error.hint
    assert seen == ["half\n"]


def test_a_setup_that_hangs_is_told(store: Store, launcher: Launcher, tmp_path: Path) -> None:
    script = "echo waiting for nothing\nsleep 1000\n"
    error = failing(written(tmp_path / "hanging", script, more="timeout = 1"), store, launcher)
    assert "setup.sh of layer 'hanging' did not end within" in error.message
    assert error.looked_at == ("waiting for nothing",)


def test_what_setup_says_is_passed_on_while_it_works(
    store: Store, launcher: Launcher, tmp_path: Path
) -> None:
    steps: list[str] = []
    recipe = written(tmp_path / "slow", "echo half way\nsleep 3\necho done\n")
    build(recipe, store, guests=launcher, progress=lambda step, _share: steps.append(step))
    assert "setup.sh: half way" in steps


def test_a_long_setup_arrives_whole(store: Store, launcher: Launcher, tmp_path: Path) -> None:
    script = f"#!/bin/sh\n{FILLER}sha256sum $0\nexit 1\n"
    error = failing(written(tmp_path / "long", script), store, launcher)
    assert hashlib.sha256(script.encode()).hexdigest() in error.looked_at[0]


def test_a_layer_without_a_setup_is_refused(store: Store, launcher: Launcher, tmp_path: Path) -> None:
    recipe = written(tmp_path / "empty", SETUP)
    (recipe / "setup.sh").unlink()
    assert "has no setup.sh" in failing(recipe, store, launcher).message
