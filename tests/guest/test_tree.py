"""Trees of small Debian systems, really installed: the same bytes every time, and nothing of this machine."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pexpect
import pytest

from pytest_kvmlab.drivers import debian, root_tar
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.tree import build_tree, installed
from pytest_kvmlab.spec.lock import LockedPackage, lock_text, parse_lock
from pytest_kvmlab.spec.manifest import LOCK
from tests import small_tar
from tests.guest.unprivileged import Unprivileged

SUITE = "bookworm"

# Built by somebody else: another user, home, folder, time zone, mask and language.
BUILD = """
import os, sys
from pathlib import Path
from pytest_kvmlab.lab.tree import build_tree
from pytest_kvmlab.spec.lock import parse_lock
os.umask(0o077)
recipe, lock, pool, target, folder = map(Path, sys.argv[1:])
folder.mkdir()
build_tree(recipe, parse_lock(lock.read_text(), source="lock"), asked=(), pool=pool, target=target,
           folder=folder, progress=lambda *_: None)
"""


@dataclass(frozen=True)
class Base:
    """The smallest system: what is essential, and apt."""

    recipe: Path
    lock: tuple[LockedPackage, ...]
    pool: Path
    tree: Path


def pool_with(packages: tuple[LockedPackage, ...], pool: Path) -> None:
    scratch = pool.with_name("scratch")
    for folder in (pool, scratch):
        folder.mkdir(exist_ok=True)
    debian.fetch(packages, pool, suite=SUITE, scratch=scratch, progress=lambda *_: None)


def recipe(folder: Path, setup: str) -> Path:
    """The folder of a recipe with a script, a configuration file and a program."""
    (folder / "root" / "etc").mkdir(parents=True)
    (folder / "root" / "etc" / "motd").write_text("welcome\n")
    (folder / "root" / "etc" / "program").write_text("#!/bin/sh\n")
    (folder / "setup.sh").write_text(setup)
    return folder


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that another user gets at, as pytest's own are not."""
    with TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def base(open_folder: Path) -> Base:
    place = open_folder
    lock = debian.resolve_system([], suite=SUITE)
    made = Base(recipe(place / "small", "id -u >/etc/built-by\n"), lock, place / "pool", place / "root.tar")
    pool_with(lock, made.pool)
    (place / "work").mkdir()
    build_tree(made.recipe, lock, asked=(), pool=made.pool, target=made.tree, folder=place / "work",
               progress=lambda *_: None)  # fmt: skip
    return made


def grown(base: Base, folder: Path, setup: str, packages: tuple[LockedPackage, ...] = ()) -> Path:
    (folder / "work").mkdir()
    build_tree(
        recipe(folder / "child", setup),
        packages,
        asked=["netbase"],
        pool=base.pool,
        target=folder / "child.tar",
        folder=folder / "work",
        parent=base.tree,
        progress=lambda *_: None,
    )
    return folder / "child.tar"


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@pytest.mark.timeout(900)
def test_an_unprivileged_build_elsewhere_gives_the_same_bytes(base: Base, open_folder: Path) -> None:
    (open_folder / "nobody").mkdir()
    nobody = Unprivileged.prepare(open_folder / "nobody", guests=False)
    (nobody.home / "lock").write_text(lock_text(base.lock))
    paths = [base.recipe, nobody.home / "lock", base.pool, nobody.home / "other.tar", nobody.home / "w"]
    subprocess.run(
        [*nobody.python, "-c", BUILD, *map(str, paths)],
        env=nobody.environment | {"TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8", "SECRET": "leak"},
        cwd=nobody.home,
        check=True,
        timeout=850,
    )
    assert sha256(nobody.home / "other.tar") == sha256(base.tree)


def test_a_tree_has_nothing_of_this_machine_and_no_secrets(base: Base) -> None:
    with root_tar.opened(base.tree) as tree:
        secrets = [path for path in tree.members if "ssh_host_" in path or path.endswith("random-seed")]
        shadow = [line.split(":") for line in tree.read("etc/shadow").decode().splitlines()]
        assert secrets == []
        assert {fields[1] for fields in shadow} <= {"*", "!", "!*"}
        assert "etc/resolv.conf" not in tree.members
        assert tree.read("etc/hostname") == b"localhost\n"
        assert tree.read("etc/machine-id") == b""
        assert tree.read("etc/fstab").startswith(b"LABEL=root / ext4 ")
        assert not [path for path in tree.members if "mmdebstrap" in path]


def test_exactly_the_lock_is_installed(base: Base) -> None:
    stanzas = installed(base.tree).split("\n\n")
    fields = [dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line) for stanza in stanzas]
    found = {(package["Package"], package["Version"]) for package in fields if package}
    assert found == {(package.name, package.version) for package in base.lock}


def test_the_recipes_files_are_roots_and_its_script_runs_as_root(base: Base) -> None:
    with root_tar.opened(base.tree) as tree:
        files = [tree.members[f"etc/{name}"] for name in ("motd", "program", "built-by")]
        assert [(oct(file.mode), file.uid, file.gid) for file in files] == [
            ("0o644", 0, 0), ("0o755", 0, 0), ("0o644", 0, 0),
        ]  # fmt: skip
        assert (tree.read("etc/motd"), tree.read("etc/built-by")) == (b"welcome\n", b"0\n")


def test_a_tree_grows_from_its_parent(base: Base, tmp_path: Path) -> None:
    added = debian.resolve_system(["netbase"], suite=SUITE, installed=installed(base.tree))
    assert [package.name for package in added] == ["netbase"]
    pool_with(added, base.pool)
    child = grown(base, tmp_path, "test -e /etc/services; tail -n +2 /proc/net/route >/etc/routes\n", added)
    with root_tar.opened(child) as tree:
        assert tree.read("etc/built-by") == b"0\n"
        assert tree.read("etc/routes") == b""
    assert "Package: netbase" in installed(child)


def test_a_tree_grows_the_same_way_twice(base: Base, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
    script = "useradd --create-home user\ntouch /etc/late\n"
    one, two = (grown(base, tmp_path / name, script) for name in ("one", "two"))
    assert sha256(one) == sha256(two)


def test_a_failing_script_is_shown_with_the_end_of_its_output(base: Base, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as failed:
        grown(base, tmp_path, "seq 100\necho nearly >&2\nfalse\necho never\n")
    told = str(failed.value)
    assert "image child: setup.sh failed with status 1" in told
    assert "nearly" in told
    assert "never" not in told
    assert "  72" in told
    assert "  71" not in told
    assert f"kvmlab image build {tmp_path / 'child'} --shell" in failed.value.hint


@pytest.fixture
def tiny(launcher: Launcher, tmp_path: Path) -> Base:
    """A tree with a shell and no more, in which only scripts are of use."""
    (lock,) = (
        package
        for package in parse_lock(_lock_of_micro(launcher), source="micro")
        if package.name == "busybox-static"
    )
    debian.unpack(debian.pooled(launcher.images._store.packages, lock), tmp_path / "unpacked")
    (busybox,) = (tmp_path / "unpacked").glob("**/bin/busybox")
    tree = small_tar.write(
        tmp_path / "tiny.tar",
        *(small_tar.folder(path) for path in ("./", "./usr", "./usr/bin")),
        small_tar.symlink("./bin", "usr/bin"),
        small_tar.file("./usr/bin/busybox", busybox.read_bytes(), mode=0o755),
        small_tar.file("./usr/bin/tar", b"#!/bin/sh\nexit 0\n", mode=0o755),
        *(small_tar.symlink(f"./usr/bin/{name}", "busybox") for name in ("sh", "cat")),
    )
    return Base(tmp_path, (), tmp_path, tree)


def _lock_of_micro(launcher: Launcher) -> bytes:
    lock = ensure("micro", launcher.images._store, progress=lambda *_: None).file(LOCK)
    assert lock
    return lock.read_bytes()


def test_who_wants_to_know_why_a_script_fails_is_told_how_to_look(tiny: Base, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"child: setup\.sh failed with status 7.*\n +half way\n") as failed:
        grown(tiny, tmp_path, "echo half way\nexit 7\n")
    command = f"kvmlab image build {tmp_path / 'child'} --shell"
    assert failed.value.hint == f"nothing of it is kept; look around in it: {command}"


LOOK = """
import sys
from pathlib import Path
from pytest_kvmlab.lab.tree import build_tree
recipe, tree, target, folder = map(Path, sys.argv[1:])
build_tree(recipe, (), asked=(), pool=folder, target=target, folder=folder, parent=tree,
           shell_on_failure=True, progress=lambda *_: None)
"""


def test_a_shell_shows_the_tree_as_the_script_left_it(tiny: Base, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    child = recipe(tmp_path / "child", "echo half >/note\nexit 7\n")
    arguments = ["-c", LOOK, str(child), str(tiny.tree), str(tmp_path / "new.tar"), str(tmp_path / "work")]
    with pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60) as terminal:
        terminal.expect("setup.sh failed with status 7 .*this is the tree as it left it")
        terminal.sendline("cat /note")
        terminal.expect("\r\nhalf\r\n")
        terminal.sendline("exit")
        terminal.expect("image child: setup.sh failed with status 7")


def test_a_damaged_package_is_refused(base: Base, tmp_path: Path) -> None:
    added = debian.resolve_system(["netbase"], suite=SUITE, installed=installed(base.tree))
    (base.pool / f"{'0' * 64}.deb").write_bytes(b"!<arch>\n")
    damaged = tuple(package.model_copy(update={"sha256": "0" * 64}) for package in added)
    with pytest.raises(ImageError, match=r"image child: .*dpkg-deb"):
        grown(base, tmp_path, "", damaged)
