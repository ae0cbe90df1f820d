"""The door to Debian's archive: apt and dpkg as any user may call them, without installing anything."""

import re
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.drivers.program import run
from pytest_kvmlab.errors import ImageError

_ASK_SECONDS = 60
_DOWNLOAD_SECONDS = 900
_UNPACK_SECONDS = 300

# 'URI' FILE SIZE SHA256:HEX, one line per package: apt-get(8), --print-uris
_OFFER = re.compile(r"^'[^']*' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One exact binary package that the archive offers.

    Attributes:
        name: the package's name.
        version: its exact version.
        file: the name of its file once downloaded.
        size: bytes of that file.
        sha256: hexadecimal digest of that file.
    """

    name: str
    version: str
    file: str
    size: int
    sha256: str


def kernel_package(name: str) -> str:
    """Follow a kernel metapackage such as `linux-image-amd64` to the package that has the kernel.

    Args:
        name: a metapackage, or a kernel package itself.

    Returns:
        The name of the kernel package.

    Raises:
        ImageError: apt does not know the package.
    """
    told = run(["apt-cache", "depends", "--important", name], package="apt", timeout=_ASK_SECONDS)
    kernels = re.findall(r"^ *Depends: (linux-image-\S+)$", told, re.MULTILINE)
    return kernels[0] if kernels else name


def resolve(names: Sequence[str]) -> tuple[Package, ...]:
    """Ask apt which exact packages it would download; the network is not touched.

    Args:
        names: package names.

    Returns:
        The packages, sorted by name.

    Raises:
        ImageError: apt does not know one of them, or its package lists are empty.
    """
    told = run(["apt-get", "download", "--print-uris", *names], package="apt", timeout=_ASK_SECONDS)
    offers = sorted((_package(offer) for offer in _OFFER.finditer(told)), key=lambda package: package.name)
    missing = set(names) - {package.name for package in offers}
    if missing:
        raise ImageError(
            f"apt offers no file for {', '.join(sorted(missing))}", "fetch the package lists: apt-get update"
        )
    return tuple(offers)


def _package(offer: re.Match[str]) -> Package:
    name, version, _ = urllib.parse.unquote(offer["file"]).rsplit("_", 2)
    return Package(name, version, offer["file"], int(offer["size"]), offer["sha256"])


def download(packages: Iterable[Package], folder: Path) -> None:
    """Download packages into a folder; apt checks their digests against the signed lists.

    Args:
        packages: what `resolve` said.
        folder: an existing folder that gets the files.

    Raises:
        ImageError: the archive cannot be reached, or no longer has one of these versions.
    """
    wanted = [f"{package.name}={package.version}" for package in packages]
    run(["apt-get", "download", *wanted], package="apt", timeout=_DOWNLOAD_SECONDS, folder=folder)


def install(packages: Sequence[str]) -> None:
    """Install packages on this machine; the caller is root.

    Raises:
        ImageError: apt cannot; the message ends with what it said.
    """
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], package="apt", timeout=_DOWNLOAD_SECONDS, environment=quiet)
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    run(command, package="apt", timeout=_DOWNLOAD_SECONDS, environment=quiet)


def unpack(package_file: Path, folder: Path) -> None:
    """Unpack the files of a package; none of its scripts runs.

    Args:
        package_file: a `.deb` file.
        folder: where its tree goes.

    Raises:
        ImageError: the file is damaged, or the disk is full.
    """
    run(["dpkg-deb", "-x", package_file, folder], package="dpkg", timeout=_UNPACK_SECONDS)
