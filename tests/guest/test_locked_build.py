"""Images and their packages: what an archive lacks, and locks while it moves on or disappears."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_kvmlab import cli
from pytest_kvmlab.drivers import debian
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.build import build, ensure
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.kernel import release_of
from pytest_kvmlab.spec.lock import parse_lock
from pytest_kvmlab.spec.manifest import LOCK

KVMLAB = Path(sys.executable).with_name("kvmlab")
BUSYBOX = "busybox-static"
APT = """
Dir::State "{0}/state";
Dir::State::status "{0}/status";
Dir::Cache "{0}/cache";
Dir::Etc::SourceList "{0}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
APT::Sandbox::User "root";
"""
RECIPE = """
kind = "initramfs"
kernel = "{kernel}"
packages = ["busybox-static"]
files = ["usr/bin/busybox"]
data = {{ size = "4MiB" }}
boot = {{ cmdline = "console=ttyS0" }}
"""


def quiet(_step: str, _share: float | None) -> None:
    pass


@dataclass(frozen=True)
class Archive:
    """An archive of packages in a folder, and an apt that knows no other one."""

    folder: Path

    def begin(self) -> None:
        for name in ("state/lists/partial", "cache/archives/partial", "packages"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "status").touch()
        (self.folder / "sources.list").write_text(f"deb [trusted=yes] copy:{self.folder}/packages ./\n")
        (self.folder / "apt.conf").write_text(APT.format(self.folder))

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    def update(self) -> None:
        """Let apt learn what is there now."""
        stanzas = []
        for file in sorted(self.packages.glob("*.deb")):
            digest = debian._sha256(file)
            place = f"Filename: ./{file.name}\nSize: {file.stat().st_size}\nSHA256: {digest}\n"
            stanzas.append(debian.control(file).rstrip() + "\n" + place)
        (self.packages / "Packages").write_text("\n".join(stanzas))
        subprocess.run(["apt-get", "-q", "update"], check=True, timeout=60, capture_output=True)

    def move_on(self, name: str, work: Path) -> None:
        """Have a newer version of a package in place of the old one."""
        (old,) = self.packages.glob(f"{name}_*.deb")
        debian.unpack(old, work)
        (work / "DEBIAN").mkdir()
        control = debian.control(old).replace("\nVersion: ", "\nVersion: 9")
        (work / "DEBIAN" / "control").write_text(control)
        old.unlink()
        debian.pack(work, self.packages / f"{name}_new.deb")
        self.update()

    def vanish(self) -> None:
        for file in self.packages.iterdir():
            file.unlink()
        self.update()


@pytest.fixture(scope="module")
def slim(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that the run's micro image has its kernel and busybox from; of the kernel, no modules."""
    micro = ensure("micro", launcher.images._store, progress=quiet)
    lock = micro.file(LOCK)
    assert lock
    made = tmp_path_factory.mktemp("slim")
    for package in parse_lock(lock.read_bytes(), source="micro"):
        file = debian.pooled(launcher.images._store.packages, package)
        if package.name == BUSYBOX:
            shutil.copy(file, made / f"{package.name}_1.deb")
        if release := release_of(package.name):
            _without_modules(file, made / f"{package.name}_1.deb", release, tmp_path_factory.mktemp("kernel"))
    return made


def _without_modules(file: Path, slim: Path, release: str, work: Path) -> None:
    debian.unpack(file, work / "all")
    for name in (f"boot/vmlinuz-{release}", f"lib/modules/{release}/modules.builtin", "DEBIAN/control"):
        (work / "slim" / name).parent.mkdir(parents=True, exist_ok=True)
    for name in (f"boot/vmlinuz-{release}", f"lib/modules/{release}/modules.builtin"):
        (work / "all" / name).rename(work / "slim" / name)
    kept = [line for line in debian.control(file).splitlines() if line.startswith(("Package:", "Version:"))]
    more = ["Architecture: amd64", "Maintainer: nobody <nobody@example.org>", "Description: a kernel", ""]
    (work / "slim" / "DEBIAN" / "control").write_text("\n".join(kept + more))
    debian.pack(work / "slim", slim)


@pytest.fixture
def archive(slim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    archive = Archive(tmp_path / "apt")
    archive.begin()
    for file in slim.iterdir():
        shutil.copy(file, archive.packages)
    monkeypatch.setenv("APT_CONFIG", str(archive.folder / "apt.conf"))
    archive.update()
    return archive


@pytest.fixture
def recipe(archive: Archive, tmp_path: Path) -> Path:
    (kernel,) = (file.name.split("_")[0] for file in archive.packages.glob("linux-image-*.deb"))
    folder = tmp_path / "tiny"
    (folder / "root").mkdir(parents=True)
    (folder / "image.toml").write_text(RECIPE.format(kernel=kernel))
    (folder / "init").write_text("#!/bin/sh\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def lock(recipe: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Of an image that was built of the newest packages."""
    build(recipe, store, progress=quiet)
    cli.app(["image", "lock", "tiny", "--store", str(store.root)], standalone_mode=False)
    (tmp_path / "image.lock").write_text(capsys.readouterr().out)
    return tmp_path / "image.lock"


def other_store(store: Store, folder: Path) -> Store:
    """A store that has the packages of another one, and none of its images."""
    shutil.copytree(store.packages, folder / "packages")
    return Store(folder)


def version_of(package: str, image: Image) -> str:
    return image.manifest.packages[package]


def test_a_lock_gives_the_same_image_when_the_archive_has_moved_on_and_when_it_is_gone(
    archive: Archive, recipe: Path, store: Store, lock: Path, tmp_path: Path
) -> None:
    first = store.find("tiny")
    assert first
    archive.move_on(BUSYBOX, tmp_path / "new")
    later = other_store(store, tmp_path / "later")
    assert build(recipe, later, lock=lock, progress=quiet).sha256 == first.sha256
    newest = build(recipe, other_store(store, tmp_path / "newest"), progress=quiet)
    assert version_of(BUSYBOX, newest) == f"9{version_of(BUSYBOX, first)}"
    archive.vanish()
    gone = other_store(store, tmp_path / "gone")
    cli.app(
        ["image", "build", str(recipe), "--lock", str(lock), "--store", str(gone.root)], standalone_mode=False
    )
    again = gone.find("tiny")
    assert again
    assert again.sha256 == first.sha256


def test_a_version_that_neither_the_archive_nor_the_store_has_is_named(
    archive: Archive, recipe: Path, store: Store, lock: Path, tmp_path: Path
) -> None:
    (locked,) = (each for each in json.loads(lock.read_text())["packages"] if each["name"] == BUSYBOX)
    archive.move_on(BUSYBOX, tmp_path / "new")
    elsewhere = Store(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="packages of the lock are nowhere any more") as refused:
        build(recipe, elsewhere, lock=lock, progress=quiet)
    assert refused.value.message.endswith(f": {BUSYBOX} {locked['version']}")
    assert (elsewhere.find("tiny"), list(elsewhere.packages.iterdir())) == (None, [])
    debian.pooled(store.packages, parse_lock(lock.read_bytes(), source="lock")[0]).rename(
        elsewhere.packages / f"{locked['sha256']}.deb"
    )
    assert build(recipe, elsewhere, lock=lock, progress=quiet) == elsewhere.find("tiny")


@pytest.mark.parametrize("kind", ["initramfs", "installer"])
def test_a_package_that_is_misspelt_is_told_with_the_nearest(
    recipe: Path, store: Store, launcher: Launcher, kind: str
) -> None:
    file = recipe / "image.toml"
    text = file.read_text().replace(BUSYBOX, "busybox-sttaic")
    if kind == "installer":
        disc = text.replace('kind = "initramfs"\n', "").partition("data =")[0]
        text = f'kind = "installer"\nsize = "16MiB"\n[disc]{disc}'
    file.write_text(text)
    with pytest.raises(ImageError, match=r"no package 'busybox-sttaic' \(did you mean 'busybox-static'\?\)"):
        build(recipe, store, guests=launcher, progress=quiet)


def test_a_second_build_says_that_it_waits_and_takes_what_the_first_has_made(
    recipe: Path, store: Store, lock: Path
) -> None:
    """Here the first one is this test."""
    there = store.find("tiny")
    command = [str(KVMLAB), "image", "build", str(recipe), "--lock", str(lock), "--store", str(store.root)]
    with store.building("tiny", waiting=pytest.fail):
        second = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert second.stderr
        assert second.stderr.readline() == "waiting for another process that builds the image tiny\n"
        assert second.poll() is None
    output, _ = second.communicate(timeout=60)
    assert there
    assert output == f"tiny: {there.folder}\n"
