"""What apt says about a release of Debian, and packages fetched from its archive."""

import hashlib
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import debian
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.spec.lock import LockedPackage

SUITE = "bookworm"


def fetch(packages: tuple[LockedPackage, ...], folder: Path) -> list[str]:
    """Fetch into the folder's pool, and say what was done."""
    steps: list[str] = []
    for name in ("pool", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    debian.fetch(
        packages,
        folder / "pool",
        suite=SUITE,
        scratch=folder / "scratch",
        progress=lambda step, _: steps.append(step),
    )
    return steps


@pytest.fixture(scope="module")
def netbase() -> tuple[LockedPackage, ...]:
    """A small package without dependencies, for a system that has everything else."""
    return debian.resolve_system(["netbase"], suite=SUITE, installed=status("apt", "1.0"))


def status(name: str, version: str) -> str:
    return (
        f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: a package\n"
    )


def test_a_new_system_has_what_is_essential_and_what_that_needs() -> None:
    names = {package.name for package in debian.resolve_system(["openssh-server"], suite=SUITE)}
    assert {"dpkg", "apt", "libc6", "openssh-server", "openssh-client"} <= names
    assert "usrmerge" not in names


def test_what_is_installed_stays_as_it_is() -> None:
    added = debian.resolve_system(["netbase", "hostname"], suite=SUITE, installed=status("hostname", "0.1"))
    assert {"netbase"} <= {package.name for package in added}
    assert "hostname" not in {package.name for package in added}


def test_a_release_without_lists_is_named_with_the_remedy() -> None:
    with pytest.raises(ImageError, match="no package lists of Debian bookwurm") as refused:
        debian.resolve_system([], suite="bookwurm")
    assert "sources.list.d" in refused.value.hint


def test_an_unknown_package_is_named_with_the_nearest() -> None:
    with pytest.raises(ImageError, match=r"no package 'opensh-server' \(did you mean 'openssh-server'\?\)"):
        debian.resolve_system(["opensh-server"], suite=SUITE)


def test_an_unknown_package_of_any_release_is_named_with_the_nearest() -> None:
    with pytest.raises(ImageError, match=r"no package 'busybox-sttaic' \(did you mean 'busybox-static'\?\)"):
        debian.resolve(["zlib1g", "busybox-sttaic"])


@pytest.mark.parametrize("suite", [None, SUITE])
def test_an_unknown_kernel_is_named_with_the_nearest(suite: str | None) -> None:
    with pytest.raises(ImageError, match=r"'linux-image-amd65' \(did you mean 'linux-image-amd64'\?\)"):
        debian.kernel_package("linux-image-amd65", suite=suite)


def test_what_is_in_the_pool_is_not_fetched_again(netbase: tuple[LockedPackage, ...], tmp_path: Path) -> None:
    assert fetch(netbase, tmp_path) != []
    [file] = (tmp_path / "pool").iterdir()
    assert file.name == f"{hashlib.sha256(file.read_bytes()).hexdigest()}.deb"
    assert fetch(netbase, tmp_path) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_version_that_is_nowhere_is_named(netbase: tuple[LockedPackage, ...], tmp_path: Path) -> None:
    gone = tuple(package.model_copy(update={"version": "0.1", "sha256": "0" * 64}) for package in netbase)
    with pytest.raises(ImageError, match=r"nowhere any more: netbase 0\.1\n"):
        fetch(gone, tmp_path)


def test_other_bytes_than_the_lock_says_are_refused(
    netbase: tuple[LockedPackage, ...], tmp_path: Path
) -> None:
    other = tuple(package.model_copy(update={"sha256": "0" * 64}) for package in netbase)
    with pytest.raises(ImageError, match="another netbase"):
        fetch(other, tmp_path)
    assert list((tmp_path / "pool").iterdir()) == []
