"""Kernels that somebody has built: taken into the store as a package, like Debian's."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pytest_kvmlab.drivers import debian, kernel
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.kernels import Kernel
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.kernel import PACKAGE, release_of
from pytest_kvmlab.spec.lock import LockedPackage
from pytest_kvmlab.spec.validation import validate

_LARGEST = 2**30
_HASH_LETTERS = 8
# What `make modules_install` leaves beside the modules leads to where the kernel was built.
_ELSEWHERE = ("build", "source")
_CONTROL = """\
Package: {package}
Version: 0
Architecture: {architecture}
Maintainer: nobody <nobody@localhost>
Description: a kernel that was built here
"""


def adopt(file: Path, store: Store, progress: Progress) -> Kernel:
    """Take a kernel into the store.

    Args:
        file: a `.deb` package, such as `make bindeb-pkg` makes, or a `vmlinuz` whose modules are in
            `lib/modules/RELEASE` beside it or one folder above, as `make modules_install` puts them.
        store: gets the package.
        progress: told what is being done.

    Returns:
        The kernel.

    Raises:
        ConfigError: a package says something of itself that no package can be.
        ImageError: it cannot be read, is of another architecture, has no modules of its version, or lacks
            what a guest needs.
    """
    progress(f"taking in the kernel {file}", None)
    if not file.is_file():
        raise ImageError(
            f"there is no kernel {file}", "name a vmlinuz, or a package (.deb)", looked_at=[file]
        )
    if file.stat().st_size > _LARGEST:
        raise ImageError(f"{file} is too large for a kernel", looked_at=[file])
    if file.suffix == ".deb":
        return _taken(file, store)
    with _packed(file) as package:
        return _taken(package, store)


def _taken(package: Path, store: Store) -> Kernel:
    fields = dict(line.split(": ", 1) for line in debian.control(package).splitlines() if ": " in line)
    name, built_for = fields.get("Package", ""), fields.get("Architecture", "")
    release, architecture = release_of(name), debian.architecture()
    if release is None:
        raise ImageError(f"the package '{name}' has no kernel", looked_at=[package])
    if built_for != architecture:
        raise ImageError(
            f"the kernel {release} is of another architecture: {built_for}",
            f"guests of this machine run kernels of {architecture}",
            looked_at=[package],
        )
    content = package.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    written = {"name": name, "version": fields.get("Version"), "sha256": sha256, "size": len(content)}
    locked = validate(LockedPackage, written, source=str(package))
    _keep(content, locked, store)
    # A kernel that is built again has the same release, and is another one.
    return Kernel(f"{release}-own-{sha256[:_HASH_LETTERS]}", release, (locked,))


def _keep(content: bytes, package: LockedPackage, store: Store) -> None:
    """There complete or not at all: other processes may do the same at the same time."""
    target = debian.pooled(store.packages, package)
    if target.exists():
        return
    with store.building("own-kernel", waiting=lambda: None) as folder:
        file = folder / target.name
        file.write_bytes(content)
        file.chmod(0o444)
        file.rename(target)


@contextmanager
def _packed(vmlinuz: Path) -> Iterator[Path]:
    """A package of a kernel and its modules."""
    image = vmlinuz.read_bytes()
    release = kernel.release(image)
    package = f"{PACKAGE}{release}"
    if release_of(package) is None:
        raise ImageError(
            f"no package can have the name of the kernel {release}",
            "set CONFIG_LOCALVERSION to small letters, digits, '.', '+' and '-'",
            looked_at=[vmlinuz],
        )
    modules = _modules(vmlinuz, release)
    kernel.require_guests_can_run_it(image, modules, release)
    with TemporaryDirectory() as name:
        root = Path(name, "root")
        (root / "DEBIAN").mkdir(parents=True)
        (root / "boot").mkdir()
        (root / "boot" / f"vmlinuz-{release}").write_bytes(image)
        ignored = shutil.ignore_patterns(*_ELSEWHERE)
        shutil.copytree(modules, root / "lib" / "modules" / release, symlinks=True, ignore=ignored)
        control = _CONTROL.format(package=package, architecture=debian.architecture())
        (root / "DEBIAN" / "control").write_text(control, encoding="utf-8")
        file = Path(name, "kernel.deb")
        debian.pack(root, file)
        yield file


def _modules(vmlinuz: Path, release: str) -> Path:
    places = [folder / "lib" / "modules" / release for folder in (vmlinuz.parent, vmlinuz.parent.parent)]
    for place in places:
        if place.is_dir():
            return place
    others = sorted({found.name for place in places for found in place.parent.glob("*")})
    raise ImageError(
        f"there are no modules of the kernel {release}"
        + (f", only of {', '.join(others)}" if others else ""),
        "make modules_install INSTALL_MOD_PATH=the folder of the vmlinuz",
        looked_at=places,
    )
