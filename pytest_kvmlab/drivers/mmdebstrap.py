"""The door to mmdebstrap: a Debian system as a tar archive, from packages that are here, as any user.

Offline and bit for bit the same every time: nothing is fetched, no time in the archive is later than a fixed
one, and what differs from machine to machine does not get in (mmdebstrap(1), SOURCE_DATE_EPOCH).
"""

import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from pytest_kvmlab.drivers import debian
from pytest_kvmlab.drivers.program import run, surroundings
from pytest_kvmlab.errors import HostError, ImageError
from pytest_kvmlab.spec.lock import LockedPackage

_BUILD_SECONDS = 3600
_PROBE_SECONDS = 30
_HOOK = Path(__file__).with_name("mmdebstrap_hook.sh")
_LINES_OF_A_SCRIPT = 30
_LINES_OF_A_COMPLAINT = 12
# What files that were made during the build are dated: 2023-11-14, older than what guests are used for
EPOCH = 1_700_000_000
_SETUP = re.compile(r"^kvmlab: setup\.sh begins\n(?P<said>.*)^kvmlab: setup\.sh failed: (?P<status>\d+)$",
                    re.MULTILINE | re.DOTALL)  # fmt: skip


class SetupFailed(ImageError):
    """The script of a recipe failed in the tree."""


def tree(
    target: Path,
    packages: Sequence[LockedPackage],
    *,
    pool: Path,
    asked: Collection[str],
    files: Path,
    setup: Path | None = None,
    parent: Path | None = None,
    boots: str | None = None,
    folder: Path,
    shell_on_failure: bool = False,
) -> None:
    """Install packages into a new tree, or into one that is there, and archive it.

    Args:
        target: the tar archive to write.
        packages: exactly what is installed; a new system's essential packages are among them.
        pool: where each is, as `SHA256.deb`.
        asked: the names that somebody asked for; the others count as automatically installed.
        files: a tar archive of files that go over the tree.
        setup: a shell script that runs in the tree after that, as its root, without a network.
        parent: the archive of the tree that this one grows from; None: a new one.
        boots: the release of the kernel that its boot loader starts; None: the one installed last.
        folder: an empty folder with room for the tree, which this fills.
        shell_on_failure: give whoever sits at the terminal a shell in the tree if the script fails.

    Raises:
        HostError: this machine lets nobody build, or lacks a program for it.
        SetupFailed: the script fails; the message ends with what it said.
        ImageError: the same of a package.
    """
    _gather(packages, pool, asked, folder)
    for source, name in ((files, "files.tar"), (setup, "setup.sh"), (parent, "parent.tar")):
        if source:
            (folder / name).symlink_to(source.resolve())
    # A copy, since a shell reads a script while it runs it, and packages are upgraded.
    shutil.copyfile(_HOOK, folder / "hook.sh")
    (folder / "tmp").mkdir()
    log = folder / "log"
    mode = _mode()
    command = _command(target, mode, new=parent is None, folder=folder, log=log)
    try:
        run(_isolated(mode, _environment(folder, boots, shell_on_failure)) + command,
            package="mmdebstrap", timeout=_BUILD_SECONDS, folder=folder)  # fmt: skip
    except ImageError as error:
        raise _told(log) from error


def _gather(packages: Sequence[LockedPackage], pool: Path, asked: Collection[str], folder: Path) -> None:
    """Make an archive of exactly these packages: deb-src-index(5), apt's flat repositories."""
    if not packages:
        return
    repository = folder / "packages"
    repository.mkdir()
    stanzas = []
    for package in packages:
        file = debian.pooled(pool, package)
        (repository / f"{package.name}.deb").symlink_to(file.resolve())
        control = debian.control(file).rstrip("\n")
        stanzas.append(
            f"{control}\nFilename: ./{package.name}.deb\nSize: {package.size}\nSHA256: {package.sha256}\n"
        )
    (repository / "Packages").write_text("\n".join(stanzas), encoding="utf-8")
    automatic = sorted({package.name for package in packages} - set(asked))
    (folder / "automatic").write_text("".join(f"{name}\n" for name in automatic), encoding="utf-8")


def _command(target: Path, mode: str, *, new: bool, folder: Path, log: Path) -> list[str]:
    source = f"deb [trusted=yes] copy:{folder / 'packages'} ./"
    return [
        "mmdebstrap",
        f"--mode={mode}",
        "--variant=apt" if new else "--variant=custom",
        *([] if new else ["--skip=update"]),
        "--format=tar",
        "--verbose",
        f"--logfile={log}",
        "--dpkgopt=force-unsafe-io",
        '--setup-hook=sh "$KVMLAB_WORK/hook.sh" setup "$1"',
        '--customize-hook=sh "$KVMLAB_WORK/hook.sh" customize "$1"',
        "",
        str(target.resolve()),
        source,
    ]


def _mode() -> str:
    """Real namespaces where this user may have them with more than one user inside, else a pretended root.

    As root, too, so that what is mounted goes when the build ends, however it ends.
    """
    if os.geteuid() == 0 and _works("unshare", "--mount", "--pid", "--fork", "true"):
        return "unshare"
    if shutil.which("fakechroot") and shutil.which("fakeroot"):
        return "fakechroot"
    raise HostError(
        "this machine does not let this user build a Debian system",
        "install the packages fakechroot and fakeroot, or build as root",
        looked_at=["whether this is root and may make namespaces", "the programs fakechroot and fakeroot"],
    )


def _isolated(mode: str, environment: Sequence[str]) -> list[str]:
    """How the build is started: without a network, and so that it ends when we do."""
    private = ["--net", "--pid", "--fork", "--kill-child"]
    users = [] if mode == "unshare" else ["--user", "--map-current-user"]
    bounds = ["unshare", *users, *private, "--"] if _works("unshare", *users, *private, "true") else []
    return ["setpriv", "--pdeathsig", "KILL", "--", *bounds, "env", "-i", *environment]


def _environment(folder: Path, boots: str | None, shell_on_failure: bool) -> list[str]:
    """All that the build sees of ours: no locale, time zone or secret of whoever builds."""
    variables = {
        "PATH": surroundings()["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LC_ALL": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        "DEBIAN_FRONTEND": "noninteractive",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "INITRD": "No",  # not with every package: once, at the end
        # In a namespace with one user the kernel answers otherwise than fakeroot expects, so it is not asked.
        "FAKEROOTDONTTRYCHOWN": "1",
        "KVMLAB_WORK": str(folder.resolve()),
        "KVMLAB_BOOTS": boots or "",
        "KVMLAB_SHELL": "yes" if shell_on_failure else "",
    }
    return [f"{name}={value}" for name, value in variables.items()]


def _works(*command: str) -> bool:
    try:
        run(command, package="util-linux", timeout=_PROBE_SECONDS)
    except ImageError:
        return False
    return True


def _told(log: Path) -> ImageError:
    """What the log says of a failure: the script's own words, or the installation's complaints."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if failed := _SETUP.search(text):
        said = _tail(failed["said"].splitlines(), _LINES_OF_A_SCRIPT)
        return SetupFailed(f"setup.sh failed with status {failed['status']}; the end of its output:\n{said}")
    lines = text.splitlines()
    complaints = [line for line in lines if re.match(r"E: |dpkg: error|dpkg-deb: error", line)] or lines
    return ImageError(f"the packages cannot be installed:\n{_tail(complaints, _LINES_OF_A_COMPLAINT)}")


def _tail(lines: Sequence[str], count: int) -> str:
    return "\n".join(f"  {line}" for line in lines[-count:])
