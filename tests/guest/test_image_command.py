"""`kvmlab image`, as people and scripts use it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pytest_kvmlab import cli
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.store import Image, Store, record
from pytest_kvmlab.spec.manifest import Manifest
from tests.unit.test_store import A, B, put

KVMLAB = Path(sys.executable).with_name("kvmlab")
A_BAR = """
import time
from pytest_kvmlab.cli.output import progress
from pytest_kvmlab.progress import Transfer
with progress() as show:
    for share in range(20):
        show(Transfer("moving", 2**30), share / 20)
        time.sleep(0.1)
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("KVMLAB_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "store")


@pytest.fixture
def tiny(store: Store) -> Image:
    return put(store)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    cli.app(["image", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(said(capsys, *arguments, "--json"))


def test_images_and_recipes_are_listed(capsys: pytest.CaptureFixture[str], tiny: Image) -> None:
    listed = {image["name"]: image for image in document(capsys, "list")}
    assert (listed["tiny"]["sha256"], listed["tiny"]["size"]) == (tiny.sha256, 18)
    assert listed["micro"]["built"] is False
    assert f"{tiny.sha256[:16]}  {tiny.folder}" in said(capsys, "list")


def test_a_damaged_image_is_listed_as_such(capsys: pytest.CaptureFixture[str], tiny: Image) -> None:
    (tiny.folder / "initrd").unlink()
    assert "it is missing" in {image["name"]: image for image in document(capsys, "list")}["tiny"]["damaged"]
    assert re.search("^tiny +damaged", said(capsys, "list"), re.MULTILINE)


def test_an_image_of_another_version_is_listed_as_such(
    capsys: pytest.CaptureFixture[str], tiny: Image
) -> None:
    file = tiny.folder / "manifest.json"
    file.chmod(0o644)
    file.write_text(json.dumps({**json.loads(file.read_text()), "arch": "amd64"}))
    listed = {image["name"]: image for image in document(capsys, "list")}["tiny"]
    assert "arch: unknown key" in listed["other_version"]
    assert "kvmlab image build tiny" in said(capsys, "list")


def test_an_image_is_shown_with_the_recipes_and_labs_that_would_miss_it(
    capsys: pytest.CaptureFixture[str], store: Store, tmp_path: Path
) -> None:
    put(store, name="debian-12")
    (tmp_path / "here.lab.toml").write_text('[guest.one]\nimage = "debian-12"\n')
    (tmp_path / "wrong.lab.toml").write_text("[guest.one]\nimmage = 1\n")
    shown = document(capsys, "show", "debian-12")
    assert "debian-12-mariadb" in shown["recipes"]
    assert str(tmp_path / "here.lab.toml") in shown["labs"]
    assert "here.lab.toml" in said(capsys, "show", "debian-12")


def test_an_image_is_shown_with_its_files_and_who_uses_it(
    capsys: pytest.CaptureFixture[str], tiny: Image
) -> None:
    shown = document(capsys, "show", "tiny")
    assert shown["manifest"]["files"].keys() == tiny.manifest.files.keys()
    assert (shown["in_use"], shown["children"]) == (False, [])
    with tiny.lock_shared():
        assert document(capsys, "show", "tiny")["in_use"] is True
    assert 'guest.memory  "256MiB"' in said(capsys, "show", "tiny")


def test_what_a_manifest_says_does_not_move_the_cursor(
    capsys: pytest.CaptureFixture[str], tiny: Image
) -> None:
    evil = tiny.manifest.model_copy(update={"kernel_version": "6.1\x1b[2J[red]"})
    (tiny.folder / "manifest.json").chmod(0o644)
    (tiny.folder / "manifest.json").write_text(evil.to_json())
    assert "6.1?[2J[red]" in said(capsys, "show", "tiny")


@pytest.mark.usefixtures("tiny")
def test_two_images_are_compared(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    other = put(store, "other", B, b"kernel, newer")
    newer = other.manifest.model_copy(update={"packages": {"busybox-static": "2", "more": "1"}})
    (other.folder / "manifest.json").chmod(0o644)
    (other.folder / "manifest.json").write_text(newer.to_json())
    found = document(capsys, "diff", "tiny", "other")
    assert found["changed"] == {"busybox-static": ["1", "2"]}
    assert (found["added"], found["removed"], found["kernel"]) == ({"more": "1"}, {}, None)
    assert found["files"]["initrd"] == [6, 13]
    assert "package  busybox-static  1        2" in said(capsys, "diff", "tiny", "other")
    assert said(capsys, "diff", "tiny", "tiny") == "tiny and tiny are alike\n"


def test_verify_tells_of_each_image_and_fails_for_one(store: Store, tiny: Image) -> None:
    put(store, "other", B)
    (tiny.folder / "initrd").chmod(0o644)
    (tiny.folder / "initrd").write_bytes(b"KERNEL")
    ended = subprocess.run(
        [KVMLAB, "image", "verify"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "other: as it was built\n" in ended.stdout
    assert "initrd: its content was changed" in ended.stdout
    assert ended.stderr == "reading other\nreading tiny\n"


def test_an_image_goes_out_and_comes_back(
    capsys: pytest.CaptureFixture[str], store: Store, tmp_path: Path
) -> None:
    image = put_raw(store, b"boots".ljust(512))
    file = str(tmp_path / "raw.tar.gz")
    assert document(capsys, "export", "raw", file)["sha256"] == image.sha256
    assert document(capsys, "copy", "raw", "kept")["name"] == "kept"
    assert said(capsys, "remove", "raw", "kept") == "raw: removed\nkept: removed\n"
    assert document(capsys, "restore", file)["sha256"] == image.sha256
    assert document(capsys, "restore", file, "--name", "other")["name"] == "other"
    assert store.names() == ("other", "raw")


def put_raw(store: Store, content: bytes) -> Image:
    """An image of a whole disk."""
    with store.building("raw", waiting=pytest.fail) as folder:
        (folder / "image").mkdir()
        (folder / "image" / "disk.raw").write_bytes(content)
        return store.publish(folder / "image", raw_manifest(folder / "image"))


def raw_manifest(folder: Path) -> Manifest:
    files = {"disk.raw": record(folder / "disk.raw")}
    return Manifest(name="raw", kind="import", identity=A, files=files)


def test_an_image_in_use_is_not_removed(store: Store, tiny: Image) -> None:
    with tiny.lock_shared(), pytest.raises(ImageError, match="image 'tiny' stays"):
        cli.app(["image", "remove", "tiny"], standalone_mode=False)
    assert store.find("tiny") == tiny


def test_pruning_says_what_goes_and_what_stays(
    capsys: pytest.CaptureFixture[str], store: Store, tiny: Image
) -> None:
    with tiny.lock_shared():
        put(store, identity=B)
    dry = document(capsys, "prune", "--dry-run")
    assert [item["path"] for item in dry["removed"]] == [str(tiny.folder)]
    assert tiny.folder.exists()
    assert "removed  image" in said(capsys, "prune")
    assert not tiny.folder.exists()
    assert "no recipe builds it again" in said(capsys, "prune", "--limit", "1KiB")


@pytest.mark.usefixtures("tiny")
def test_a_lab_file_here_keeps_its_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "here.lab.toml").write_text('[guest.one]\nimage = "tiny"\n')
    (kept,) = document(capsys, "prune")["kept"]
    assert "here.lab.toml names it" in kept["why"]


@pytest.mark.usefixtures("store")
def test_a_limit_without_a_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="--limit: write a size with its unit"):
        cli.app(["image", "prune", "--limit", "20"], standalone_mode=False)


def test_an_export_that_is_told_to_end_leaves_the_old_file_alone(store: Store, tmp_path: Path) -> None:
    put(store, content=os.urandom(2**26))
    file = tmp_path / "out" / "backup"
    file.parent.mkdir()
    file.write_bytes(b"old")
    with subprocess.Popen([KVMLAB, "image", "export", "tiny", file], stderr=subprocess.DEVNULL) as export:
        deadline = time.monotonic() + 60
        while len(list(file.parent.iterdir())) < 2:
            assert time.monotonic() < deadline
            assert export.poll() is None
        export.send_signal(signal.SIGTERM)
    assert export.returncode == 128 + signal.SIGTERM
    assert [path.read_bytes() for path in file.parent.iterdir()] == [b"old"]


# As on a file system without hard links.
COPIES_FILES = """
import os
def refuse(*_): raise PermissionError
os.link = refuse
from pytest_kvmlab.cli import main
main()
"""


@pytest.mark.parametrize("words", ["restore {file} --name back", "copy raw back"], ids=["restore", "copy"])
def test_what_is_killed_half_way_leaves_the_store_as_it_was_and_the_next_one_sweeps_up(
    store: Store, tmp_path: Path, words: str
) -> None:
    image = put_raw(store, os.urandom(2**27))
    old = put(store, "back", B)
    file = tmp_path / "raw.tar.gz"
    cli.app(["image", "export", "raw", str(file)], standalone_mode=False)
    before = sorted(path for path in store.root.rglob("*") if "building" not in path.parts)
    arguments = ["image", *words.format(file=file).split(), "--replace"]
    half = store.root / "building" / "back"
    with subprocess.Popen([sys.executable, "-c", COPIES_FILES, *arguments]) as command:
        deadline = time.monotonic() + 60
        while not any(each.is_file() for each in half.rglob("*")):
            assert time.monotonic() < deadline
            assert command.poll() is None
        command.kill()
    assert half.exists()
    assert sorted(path for path in store.root.rglob("*") if "building" not in path.parts) == before
    assert (store.find("raw"), store.find("back")) == (image, old)
    store.verify(image)
    store.verify(old)
    cli.app(arguments, standalone_mode=False)
    assert not half.exists()
    new = store.find("back")
    assert new
    assert (new.folder / "disk.raw").read_bytes() == (image.folder / "disk.raw").read_bytes()


@pytest.mark.parametrize("coloured", [True, False])
def test_a_terminal_shows_a_bar_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, coloured: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not coloured:
        monkeypatch.setenv("NO_COLOR", "1")
    with pexpect.spawn(sys.executable, ["-c", A_BAR], encoding="utf-8", dimensions=(24, 120)) as terminal:
        terminal.expect(pexpect.EOF, timeout=60)
        shown = str(terminal.before)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"moving .* [0-9.]+ MiB/s 0:00:\d\d 0:00:\d\d", plain)
    assert ("\x1b[3" in shown) == coloured
