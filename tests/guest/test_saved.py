"""What a guest wrote outlives it: saved as an image, exported, restored, and booted again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.keeper.run_folder import run_folders
from pytest_kvmlab.lab.kept import disk_of, kept_guests
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.machine import connect_serial
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.lab.waits import until

pytestmark = pytest.mark.kvm(image="micro")

KVMLAB = Path(sys.executable).with_name("kvmlab")
LAB = """
[guest.web]
image = "kept-by-test"
"""


@pytest.fixture
def store(launcher: Launcher) -> Iterator[Store]:
    """The store of this run, which loses its new images at the end: ask for it before you ask for guests."""
    store = launcher.images._store
    before = set(store.names())
    reset, launcher.reset = launcher.reset, "boot"  # a template would hold its image until the run is over
    yield store
    launcher.reset = reset
    assert launcher.failures() == []
    for name in set(store.names()) - before:
        folder = store.folder_of(name)
        assert folder
        assert store.remove(folder, named=True)


def kvmlab(*arguments: str | Path, store: Store, typed: str = "") -> str:
    """What the command prints for a script."""
    ended = subprocess.run(
        [KVMLAB, *arguments],
        input=typed,
        env={**os.environ, "KVMLAB_STORE": str(store.root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def is_off(guest: Path) -> bool:
    """Whether nobody answers on the serial line of a kept guest."""
    try:
        connect_serial(guest / "serial.sock").close()
    except OSError:
        return True
    return False


def test_data_of_a_guest_comes_back_from_an_export(
    store: Store, make_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    writer = make_guest(image="micro")
    writer.succeed("echo precious > /data/note && sync")
    writer.shutdown()
    identity = writer.save_image("saved-by-test", replace=True)
    kvmlab("image", "export", "saved-by-test", tmp_path / "saved.tar.gz", store=store)
    kvmlab("image", "remove", "saved-by-test", store=store)
    told = kvmlab("image", "restore", tmp_path / "saved.tar.gz", "--json", store=store)
    assert json.loads(told)["sha256"] == identity
    reader = make_guest(image="saved-by-test")
    assert reader.image_identity == identity
    assert reader.succeed("cat /data/note") == "precious\n"


def test_a_guest_that_is_on_cannot_be_saved(shared_guest: Guest) -> None:
    with pytest.raises(ConfigError, match=r"is on, so its disk is in motion\n.*shutdown"):
        shared_guest.save_image("moving")


@pytest.mark.usefixtures("runs")
def test_a_kept_guest_holds_its_image_and_can_be_saved(store: Store, tmp_path: Path) -> None:
    def documents(*arguments: str | Path) -> Any:
        return json.loads(kvmlab(*arguments, "--json", store=store))

    def in_use() -> Any:
        return documents("image", "show", "kept-by-test")["in_use"]

    lab = tmp_path / "web.lab.toml"
    lab.write_text(LAB)
    # Guests of other tests use `micro` at the same time.
    kvmlab("image", "copy", "micro", "kept-by-test", store=store)
    kvmlab("lab", "up", lab, "--hours", "1", store=store)
    try:
        assert in_use() is True
        (run,) = run_folders()
        (guest,) = kept_guests(run).values()
        with pytest.raises(ConfigError, match="web is on"):
            disk_of(guest)
        kvmlab("lab", "shell", lab, "web", store=store, typed="echo kept > /data/note; poweroff & exit\n")
        assert until(lambda: is_off(guest) or None, Deadline(60))
        kvmlab("image", "copy", "--from-guest", f"{lab}/web", "saved-by-test", "--replace", store=store)
    finally:
        kvmlab("lab", "down", lab, store=store)
    assert in_use() is False
    difference = documents("image", "diff", "kept-by-test", "saved-by-test")
    assert [*difference["files"]] == ["disk.qcow2", "image.lock"]
