"""Locks that do not fit to their recipe: told, not half obeyed."""

from pathlib import Path

import pytest

from pytest_kvmlab import cli
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.build import build
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.spec.lock import LockedPackage, lock_text

BUSYBOX = LockedPackage(name="busybox-static", version="1:1.35.0-4", sha256="a" * 64, size=1)


def recipe(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "image.toml").write_text(text)
    (folder / "image.lock").write_text(lock_text([BUSYBOX]))
    (folder / "setup.sh").write_text("true\n")
    return folder


def refusal(folder: Path, tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        build(folder, Store(tmp_path / "store"), progress=lambda _step, _share: None)
    return str(caught.value)


def test_a_package_that_the_lock_lacks_is_named(tmp_path: Path) -> None:
    folder = recipe(
        tmp_path / "shop",
        'kind = "debian"\nfrom = "debian:bookworm"\npackages = ["busybox-static", "nginx"]\n',
    )
    assert "the lock of 'shop' lacks packages that it asks for: nginx\n" in refusal(folder, tmp_path)


def test_a_layer_has_no_lock(tmp_path: Path) -> None:
    folder = recipe(tmp_path / "noted", 'kind = "layer"\nfrom = "micro"\n')
    assert "image 'noted' is not built of packages, and has no lock" in refusal(folder, tmp_path)


def test_what_somebodys_disc_installs_has_no_lock(tmp_path: Path) -> None:
    disc = f'size = "1GiB"\n[iso]\nfile = "their.iso"\nsha256 = "{"a" * 64}"\n'
    folder = recipe(tmp_path / "theirs", f'kind = "installer"\n{disc}')
    assert "image 'theirs' is not built of packages, and has no lock" in refusal(folder, tmp_path)
    lock = (folder / "image.lock").rename(tmp_path / "image.lock")
    with pytest.raises(ConfigError, match="has no lock"):
        build(folder, Store(tmp_path / "store"), lock=lock, progress=lambda _step, _share: None)


def test_an_image_with_another_kernel_is_not_built_from_a_lock(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"micro\+6\.12 is not built from a lock"):
        cli.app(
            ["image", "build", "micro+6.12", "--lock", str(tmp_path / "image.lock")], standalone_mode=False
        )
