"""A user without any rights: this one, or, for root, `nobody`, who may read next to nothing of ours."""

import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import paramiko

import pytest_kvmlab
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.run import open_store
from pytest_kvmlab.spec.options import resolve_options

# As udev usually does.
_WITH_TUN = 'test -e "$0" || mknod -m 666 "$0" c 10 200 && mount --bind "$0" /dev/net/tun && exec "$@"'
# A helper that may what it may on few machines, and a list of bridges; neither is this machine's.
_WITH_HELPER = """
helper=/usr/lib/qemu/qemu-bridge-helper
install -m 4755 $helper "$0/helper" && mount --bind "$0/helper" $helper || exit
mkdir "$0/changes" "$0/work" && chmod 755 "$0/changes" || exit
mount -t overlay overlay -o lowerdir=/etc,upperdir="$0/changes",workdir="$0/work" /etc || exit
mkdir -p /etc/qemu && echo "$1" >/etc/qemu/bridge.conf && shift && exec "$@"
"""
_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
# The interpreter has to find itself, too: the keeper is started with it.
_PROBE = (
    "import os, sys, libvirt, paramiko, pydantic, pytest, pytest_kvmlab;"
    "os.access(sys.executable, os.X_OK) or sys.exit(f'{sys.executable} cannot be run')"
)


@dataclass(frozen=True)
class Unprivileged:
    """How programs are run as that user.

    Attributes:
        python: the beginning of a command line, up to Python's own options.
        environment: all of it.
        home: a folder of the user's, with the images that were built already.
    """

    python: list[str]
    environment: dict[str, str]
    home: Path

    @property
    def python_with_tun(self) -> list[str]:
        """The same, for root on a machine that does not give everybody the device that TAPs are made with."""
        return ["unshare", "--mount", "sh", "-c", _WITH_TUN, f"{self.home}/tun", *self.python]

    def python_with_helper(self, line: str) -> list[str]:
        """The same on a machine where QEMU's helper for bridges runs as root, and its list has one line."""
        return ["unshare", "--mount", "sh", "-c", _WITH_HELPER, str(self.home), line, *self.python_with_tun]

    @property
    def runs(self) -> Path:
        """The user's folder for runs."""
        return self.home / "runs"

    def may_make_namespaces(self) -> bool:
        """Whether the kernel lets the user: not in a chroot, and not where it was configured not to."""
        command = [*(_NOBODY if os.geteuid() == 0 else ()), "unshare", "--user", "true"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @classmethod
    def prepare(cls, home: Path, *, guests: bool = True) -> "Unprivileged":
        """Find an interpreter and packages that the user can read; copy what is kept from them.

        Args:
            home: an empty folder.
            guests: whether guests will be started, which need an image.
        """
        (home / "runs").mkdir(mode=0o700)
        if guests:
            _copy_what_guests_need(home / "store")
        environment = {"PATH": os.defpath, "HOME": str(home), "KVMLAB_STORE": str(home / "store"),
                       "KVMLAB_RUNS": str(home / "runs"), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        if os.geteuid() != 0:
            return cls([sys.executable], os.environ | environment, home)
        _give_to_nobody(home)
        packages = [
            _readable(Path(str(module.__file__)).parents[1], home) for module in (pytest_kvmlab, paramiko)
        ]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, packages))
        return cls([*_NOBODY, *_interpreter(environment)], environment, home)


def _copy_what_guests_need(store: Path) -> None:
    """The micro image, and what was found out about this machine; other images take gigabytes."""
    ours = open_store(resolve_options({"lab": True}, os.environ, {}).store)
    micro = ensure("micro", ours, progress=lambda *_: None)
    shutil.copytree(micro.folder, store / "images" / micro.folder.name)
    (store / "names").mkdir()
    (store / "names" / "micro").symlink_to(Path("..", "images", micro.folder.name))
    for known in ("accelerator", "libvirt-capabilities"):
        if (ours.root / known).exists():
            shutil.copytree(ours.root / known, store / known)


def _give_to_nobody(folder: Path) -> None:
    user = pwd.getpwnam("nobody")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _readable(folder: Path, home: Path) -> Path:
    if subprocess.run([*_NOBODY, "ls", folder], check=False, capture_output=True).returncode == 0:
        return folder
    copy = home / "packages" / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    _give_to_nobody(home / "packages")
    return copy


def _interpreter(environment: dict[str, str]) -> list[str]:
    """An interpreter of this version, since libvirt and cryptography were compiled for it."""
    version = f"python3.{sys.version_info.minor}"
    tried = {}
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        command = [*_NOBODY, candidate, "-c", _PROBE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=60)
        except subprocess.CalledProcessError as error:
            tried[candidate] = error.stderr.strip()[-300:]
        else:
            return [candidate]
    raise RuntimeError(f"user nobody can run no {version} with our packages: {tried}")
