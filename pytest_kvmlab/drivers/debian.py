"""The door to Debian's archive: apt and dpkg as any user may call them, without installing anything."""

import hashlib
import re
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pytest_kvmlab.drivers.program import run
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.progress import Progress, Transfer
from pytest_kvmlab.spec.kernel import PACKAGE, release_of
from pytest_kvmlab.spec.lock import LockedPackage
from pytest_kvmlab.spec.names import nearest

_ASK_SECONDS = 60
_DOWNLOAD_SECONDS = 900
_UNPACK_SECONDS = 300
_PACKAGES_AT_ONCE = 40
_ORIGINS = ("Debian", "Debian Backports")

# 'URI' FILE SIZE SHA256:HEX, one line per package: apt-get(8), --print-uris
_OFFER = re.compile(r"^'[^']*' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$", re.MULTILINE)


def kernel_package(name: str, *, suite: str | None = None) -> str:
    """Follow a kernel metapackage such as `linux-image-amd64` to the package that has the kernel.

    Args:
        name: a metapackage, or a kernel package itself.
        suite: the codename of the release whose archive is asked; None: any that this machine uses.

    Returns:
        The name of the kernel package.

    Raises:
        ImageError: apt does not know the package.
    """
    with _archive(suite, backports=True) as options:
        try:
            told = run(
                ["apt-cache", *options, "depends", "--important", name], package="apt", timeout=_ASK_SECONDS
            )
        except ImageError as error:
            if "No packages found" not in error.message:
                raise
            raise _unknown([name], options, suite) from error
    kernels = re.findall(r"^ *Depends: (linux-image-\S+)$", told, re.MULTILINE)
    return kernels[0] if kernels else name


def kernels(suite: str | None) -> Mapping[str, str]:
    """Ask apt which kernels there are for this machine's architecture; the network is not touched.

    Args:
        suite: the codename of the release whose archive is asked, its backports included where this machine
            has lists of them; None: any that this machine uses.

    Returns:
        The newest version of each package, by its name.

    Raises:
        ImageError: apt has no lists of the suite.
    """
    with _archive(suite, backports=True) as options:
        known = run(["apt-cache", *options, "pkgnames", PACKAGE], package="apt", timeout=_ASK_SECONDS)
        if not (names := [name for name in known.split() if release_of(name)]):
            return {}
        told = run(["apt-cache", *options, "madison", *names], package="apt", timeout=_ASK_SECONDS)
    offers = [_name_and_version(line) for line in told.splitlines()]
    return dict(reversed(offers))  # the newest version of a package is told first


def resolve(names: Sequence[str]) -> tuple[LockedPackage, ...]:
    """Ask apt which exact packages it would download; the network is not touched.

    Args:
        names: package names.

    Returns:
        The packages, sorted by name.

    Raises:
        ImageError: apt does not know one of them, or its package lists are empty.
    """
    try:
        told = run(["apt-get", "download", "--print-uris", *names], package="apt", timeout=_ASK_SECONDS)
    except ImageError as error:
        raise _refused(error, (), None) from error
    offers = sorted((_package(offer) for offer in _OFFER.finditer(told)), key=lambda package: package.name)
    missing = set(names) - {package.name for package in offers}
    if missing:
        raise ImageError(
            f"apt offers no file for {', '.join(sorted(missing))}", "fetch the package lists: apt-get update"
        )
    return tuple(offers)


def _package(offer: re.Match[str]) -> LockedPackage:
    name, version, _ = urllib.parse.unquote(offer["file"]).rsplit("_", 2)
    return LockedPackage(name=name, version=version, sha256=offer["sha256"], size=int(offer["size"]))


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


def pack(folder: Path, package_file: Path) -> None:
    """Make a package of a folder; equal content gives equal bytes.

    Args:
        folder: the files, and `DEBIAN/control` (deb-control(5)).
        package_file: the `.deb` file to make.

    Raises:
        ImageError: the control file is wrong, or the disk is full.
    """
    command: list[str | Path] = [
        "dpkg-deb",
        "--root-owner-group",
        "-Zgzip",
        "-z1",
        "--build",
        folder,
        package_file,
    ]
    run(command, package="dpkg", timeout=_UNPACK_SECONDS, environment={"SOURCE_DATE_EPOCH": "0"})


def resolve_system(
    packages: Sequence[str], *, suite: str, installed: str = "", backports: bool = False
) -> tuple[LockedPackage, ...]:
    """Ask apt for the exact packages of a system; the network is not touched.

    A new system gets what is essential, apt, the packages and what all of these depend on, without
    recommendations, from Debian's archive of the suite, of its updates and of its security updates, and from
    nowhere else: apt-get(8), apt-patterns(7).

    Args:
        packages: package names.
        suite: the codename of a release of Debian, such as `bookworm`, that this machine's apt has lists of.
        installed: the file `/var/lib/dpkg/status` of the system to which the packages are added; its packages
            stay as they are. Empty: a new system.
        backports: also where apt takes packages from only if no other archive has them.

    Returns:
        The packages to install, sorted by name.

    Raises:
        ImageError: apt does not know the suite or one of the packages, or they cannot be installed together.
    """
    # What makes /bin a link is one empty package here, where there is such a package, not a program in Perl.
    base = () if installed else ("?essential", "apt", "?exact-name(usr-is-merged)")
    with _archive(suite, installed, backports=backports) as options:
        try:
            told = _apt_get(options, "install", "--yes", "--print-uris", *base, *packages)
        except ImageError as error:
            raise _refused(error, options, suite) from error
    found = (_package(offer) for offer in _OFFER.finditer(told))
    return tuple(sorted(found, key=lambda package: package.name))


def fetch(
    packages: Sequence[LockedPackage],
    pool: Path,
    *,
    suite: str | None,
    backports: bool = False,
    scratch: Path,
    progress: Progress,
) -> None:
    """See that each package is in a pool, as `SHA256.deb`; what is there already is not fetched again.

    Several processes may fill one pool at once: a package appears there complete or not at all.

    Args:
        packages: the exact packages.
        pool: an existing folder.
        suite: the codename of the release whose archive has them; None: any that this machine uses.
        backports: also the release's backports.
        scratch: an existing folder on the same file system, for what is not complete yet.
        progress: told what is being done.

    Raises:
        ImageError: the archive cannot be reached, has other bytes, or no longer has some of the versions,
            which are named.
    """
    wanted = [package for package in packages if not pooled(pool, package).exists()]
    if not wanted:
        return
    with _archive(suite, backports=backports) as options:
        _require_offers(wanted, options, suite, pool)
        step = Transfer(f"downloading {len(wanted)} packages", sum(package.size for package in wanted))
        done = 0
        for start in range(0, len(wanted), _PACKAGES_AT_ONCE):
            batch = wanted[start : start + _PACKAGES_AT_ONCE]
            progress(step, done / max(step.total, 1))
            _fetch(batch, pool, options, scratch)
            done += sum(package.size for package in batch)


def pooled(pool: Path, package: LockedPackage) -> Path:
    """The file of a package in a pool."""
    return pool / f"{package.sha256}.deb"


def _fetch(packages: Sequence[LockedPackage], pool: Path, options: Sequence[str], scratch: Path) -> None:
    exact = [f"{package.name}={package.version}" for package in packages]
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        _apt_get(options, "download", *exact, folder=Path(name))
        came = {_sha256(file): file for file in Path(name).iterdir()}
        for package in packages:
            if package.sha256 not in came:
                raise ImageError(
                    f"the archive has another {package.name} {package.version} than the lock",
                    "update the lock, if the archive is to be trusted",
                    looked_at=[f"expected SHA-256 {package.sha256}"],
                )
            came[package.sha256].chmod(0o444)
            came[package.sha256].rename(pooled(pool, package))


def _require_offers(
    packages: Sequence[LockedPackage], options: Sequence[str], suite: str | None, pool: Path
) -> None:
    """Find out before the first download what is nowhere any more, all of it."""
    told = run(
        ["apt-cache", *options, "madison", *(package.name for package in packages)],
        package="apt",
        timeout=_ASK_SECONDS,
    )
    offers = set(map(_name_and_version, told.splitlines()))
    gone = [f"{package.name} {package.version}" for package in packages
            if (package.name, package.version) not in offers]  # fmt: skip
    if gone:
        raise ImageError(
            f"packages of the lock are nowhere any more: {', '.join(gone)}",
            "put them into the store again, from a backup or snapshot.debian.org, or update the lock",
            looked_at=[f"the archive of {suite or 'this machine'}, as its apt knows it", pool],
        )


def _name_and_version(line: str) -> tuple[str, str]:
    """The beginning of a line of `apt-cache madison`."""
    name, version = line.split("|")[:2]
    return name.strip(), version.strip()


@contextmanager
def _archive(suite: str | None, installed: str = "", *, backports: bool = False) -> Iterator[list[str]]:
    """Options that show apt one suite of Debian alone, with a system of its own; the host's stays unread."""
    if suite is None:
        yield []
        return
    sources = _sources(suite, backports=backports)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archives" / "partial").mkdir(parents=True)
        (folder / "sources.list").write_text(sources, encoding="utf-8")
        (folder / "status").write_text(installed, encoding="utf-8")
        # What is installed outweighs every other version: apt_preferences(5)
        (folder / "preferences").write_text("Package: *\nPin: release a=now\nPin-Priority: 1001\n")
        settings = {
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": folder / "preferences",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::status": folder / "status",
            "Dir::State::extended_states": folder / "extended_states",
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Debug::NoLocking": "true",
            "APT::Default-Release": "",
            "APT::Install-Recommends": "false",
            "APT::Install-Suggests": "false",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::ForceHash": "SHA256",
        }
        yield [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _sources(suite: str, *, backports: bool) -> str:
    """The host's own sources of a suite, without those that have their packages from elsewhere."""
    known = run(
        ["apt-get", "indextargets", "--format",
         "$(RELEASE) $(CODENAME) $(COMPONENT) $(ARCHITECTURE) $(REPO_URI) $(ORIGIN)", "Created-By: Packages"],
        package="apt",
        timeout=_ASK_SECONDS,
    )  # fmt: skip
    own = architecture()
    targets = [line.split(" ", 5) for line in known.splitlines()]
    wanted = {suite, f"{suite}-updates", f"{suite}-security", *([f"{suite}-backports"] if backports else [])}
    lines = [f"deb [arch={architecture}] {uri} {release} {component}\n"
             for release, codename, component, architecture, uri, origin in targets
             if codename in wanted and origin in _ORIGINS and architecture == own]  # fmt: skip
    if not lines:
        raise _no_suite(
            suite, sorted({codename for _, codename, *_, origin in targets if origin == "Debian"})
        )
    return "".join(dict.fromkeys(lines))


def _no_suite(suite: str, known: Sequence[str]) -> ImageError:
    return ImageError(
        f"this machine's apt has no package lists of Debian {suite}{nearest(suite, known)}",
        f"add the suites {suite}, {suite}-updates and {suite}-security to /etc/apt/sources.list.d, "
        "then: apt-get update",
        looked_at=[f"suites of Debian that apt has lists of: {', '.join(known) or 'none'}"],
    )


def architecture() -> str:
    """Debian's name of this machine's architecture."""
    return run(["dpkg", "--print-architecture"], package="dpkg", timeout=_ASK_SECONDS).strip()


def _refused(error: ImageError, options: Sequence[str], suite: str | None) -> ImageError:
    """Say which packages there are not, if that is what apt complains about."""
    unknown = (
        r"E: (?:Unable to locate package|Package '?|Can't select .* from package)\s*([a-z0-9][a-z0-9+.-]+)"
    )
    if names := re.findall(unknown, error.message):
        return _unknown(names, options, suite)
    return ImageError(f"apt cannot get the packages from {_place(suite)}\n{error.message}")


def _unknown(names: Sequence[str], options: Sequence[str], suite: str | None) -> ImageError:
    known = run(["apt-cache", *options, "pkgnames"], package="apt", timeout=_ASK_SECONDS).split()
    told = ", ".join(f"'{name}'{nearest(name, {*known} - {name})}" for name in names)
    return ImageError(
        f"{_place(suite)} has no package {told}", "correct the name, or, if it is new: apt-get update"
    )


def _place(suite: str | None) -> str:
    return f"Debian {suite}" if suite else "the archive of this machine's apt"


def _apt_get(options: Sequence[str], *arguments: str, folder: Path | None = None) -> str:
    command = ["apt-get", *arguments[:1], *options, *arguments[1:]]
    return run(command, package="apt", timeout=_DOWNLOAD_SECONDS, folder=folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def control(package_file: Path) -> str:
    """Read what a package says about itself.

    Args:
        package_file: a `.deb` file.

    Returns:
        Its control file (deb-control(5)), one stanza with a newline at its end.

    Raises:
        ImageError: the file is damaged.
    """
    return run(["dpkg-deb", "-f", package_file], package="dpkg", timeout=_ASK_SECONDS)
