"""A user without any rights: this one, or, for root, `nobody`, who may read next to nothing of ours."""

import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import paramiko
import platformdirs

import pytest_kvmlab

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
    def runs(self) -> Path:
        """The user's folder for runs."""
        return self.home / "runs"

    def may_make_namespaces(self) -> bool:
        """Whether the kernel lets the user: not in a chroot, and not where it was configured not to."""
        command = [*(_NOBODY if os.geteuid() == 0 else ()), "unshare", "--user", "true"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @classmethod
    def prepare(cls, home: Path) -> "Unprivileged":
        """Find an interpreter and packages that the user can read; copy what is kept from them."""
        store = platformdirs.user_cache_path("pytest-kvmlab")
        (home / "runs").mkdir(mode=0o700)
        shutil.copytree(store, home / "store")
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
