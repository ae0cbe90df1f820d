"""The image store where it cannot be written to: real file systems, in mount namespaces of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvmlab.lab.store import Store
from tests.unit.test_store import put

ROOT = Path(__file__).parents[2]
SMALL = 'mount -t tmpfs -o size=1m none "$1"'
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'


def inside(mount: str, folder: Path, code: str) -> str:
    """Run Python where a folder is mounted otherwise; `store` is the store in it.

    Returns:
        What it printed, and what it raised.
    """
    prologue = (
        "import sys; from pathlib import Path\n"
        "from pytest_kvmlab.lab.backup import export_image, restore_image\n"
        "from pytest_kvmlab.lab.copies import copy\n"
        "from pytest_kvmlab.lab.pruning import plan_pruning, prune\n"
        "from pytest_kvmlab.lab.store import Store\n"
        "from tests.unit.test_store import put\n"
        "folder = Path(sys.argv[1]); store = Store(folder / 'store')\n"
        "silent = lambda step, share: None\n"
    )
    shell = f'{mount} && exec "$0" - "$1"'
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, sys.executable, folder],
        input=prologue + code,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    return ended.stdout + ended.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return place


def test_a_full_store_says_so_and_keeps_what_it_has(folder: Path) -> None:
    told = inside(
        SMALL,
        folder,
        """
put(store)
try:
    with store.building("large", waiting=exit) as place:
        (place / "image").write_bytes(bytes(2**21))
finally:
    store.verify(store.find("tiny"))
    print([path.name for path in (store.root / "building").iterdir() if path.is_dir()])
""",
    )
    assert "[]" in told
    assert "the image store cannot be written to: No space left on device" in told
    assert "free some space" in told


def test_a_backup_without_room_leaves_no_part_of_it(folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    put(store, content=b"".join(bytes([n % 251, n // 251 % 251, n // 63001]) for n in range(2**20)))
    told = inside(
        SMALL,
        folder,
        f"""
image = Store(Path({str(store.root)!r})).find("tiny")
(folder / "backup").write_bytes(b"old")
try:
    export_image(image, folder / "backup", progress=silent)
finally:
    print([(path.name, path.read_bytes()) for path in folder.iterdir()])
""",
    )
    assert "[('backup', b'old')]" in told
    assert "backup cannot be written: No space left on device" in told


def test_a_store_without_room_for_a_restored_image_says_how_much_it_needs(
    folder: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    put(store, content=bytes(2**20))
    code = f"""
image = Store(Path({str(store.root)!r})).find("tiny")
export_image(image, folder / "backup", progress=silent)
restore_image(folder / "backup", store, progress=silent)
"""
    assert "the image tiny needs 4 MiB, and the store has 0 MiB free" in inside(SMALL, folder, code)


def test_guests_can_use_images_of_a_read_only_store(folder: Path) -> None:
    put(Store(folder / "store"))
    told = inside(
        READ_ONLY,
        folder,
        """
image = store.find("tiny")
with image.lock_shared():
    store.verify(image)
    print("used")
copy(image, "other", store, progress=silent)
""",
    )
    assert told.startswith("used")
    assert "the image store cannot be written to: Read-only file system" in told


def test_nothing_of_a_read_only_store_is_pruned(folder: Path) -> None:
    put(Store(folder / "store"))
    told = inside(
        READ_ONLY,
        folder,
        """
plan = plan_pruning(store, {}, limit=1)
print(plan.removed, prune(store, plan), store.names(), plan.kept[0].why)
""",
    )
    assert "() () ('tiny',) guests use it, or it cannot be locked" in told


def test_the_lock_of_a_killed_user_is_free_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    image = put(store)
    code = f"""
import time
from pathlib import Path
from pytest_kvmlab.lab.store import Store
with Store(Path({str(store.root)!r})).find("tiny").lock_shared():
    print("locked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        assert store.in_use(image.folder) is True
        holder.kill()
        holder.wait()
    assert store.in_use(image.folder) is False
