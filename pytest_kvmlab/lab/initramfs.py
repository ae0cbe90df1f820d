"""What the root file system of an initramfs image holds: packages' files, modules, and the recipe's own."""

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_kvmlab.drivers import busybox, cpio, kernel
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.spec.recipe import FirstRoot

# Some releases of Debian pack bin/x and some usr/bin/x, to be installed where the one is a link to the other
_MERGED = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}

_BUSYBOX = "usr/bin/busybox"
_FOLDERS = ("proc", "sys", "dev", "run", "mnt", "data", "var/log", "etc")
_OWN_FILES = "root"


def entries(recipe_folder: Path, keys: FirstRoot, packages_root: Path, release: str) -> list[cpio.Entry]:
    """Choose everything that goes into the archive.

    Args:
        recipe_folder: has files of its own in its folder `root`.
        keys: names the files and modules.
        packages_root: the unpacked packages, with the links .
        release: the kernel's release, as in `uname -r`.

    Returns:
        The entries, unsorted; a later one replaces an earlier one of the same path.

    Raises:
        ImageError: a pattern matches no file, or the kernel lacks a module.
    """
    return [
        *_folders(),
        *_applets(packages_root),
        *(entry for pattern in keys.files for entry in _packaged_files(packages_root, pattern)),
        *_modules(keys.modules, packages_root, release),
        *_own_files(recipe_folder),
    ]


def _folders() -> Iterator[cpio.Entry]:
    yield from (cpio.folder(path) for path in _FOLDERS)
    yield cpio.folder("root", 0o700)
    yield cpio.folder("tmp", 0o1777)
    yield from (cpio.link(path, target) for path, target in _MERGED.items())


def _applets(packages_root: Path) -> Iterator[cpio.Entry]:
    """Links made here, not by `busybox --install` at each boot."""
    program = _matching(packages_root, _BUSYBOX)[0]
    for path in busybox.applets(program):
        yield cpio.link(_merged(path), f"/{_BUSYBOX}")


def _merged(path: str) -> str:
    top, _, rest = path.partition("/")
    return f"{_MERGED[top]}/{rest}" if top in _MERGED else path


def _matching(packages_root: Path, pattern: str) -> list[Path]:
    patterns = dict.fromkeys([pattern, pattern.removeprefix("usr/")])
    found = sorted(path for each in patterns for path in packages_root.glob(each))
    if not found:
        raise ImageError(f"no package of the recipe has '{pattern}'", looked_at=[packages_root])
    return found


def _packaged_files(packages_root: Path, pattern: str) -> Iterator[cpio.Entry]:
    for path in _matching(packages_root, pattern):
        yield _packaged(path, _merged(str(path.relative_to(packages_root))))


def _packaged(path: Path, name: str) -> cpio.Entry:
    if path.is_symlink():
        return cpio.link(name, str(path.readlink()))
    return cpio.file(name, path.read_bytes(), executable=bool(path.stat().st_mode & stat.S_IXUSR))


def _modules(names: Sequence[str], packages_root: Path, release: str) -> Iterator[cpio.Entry]:
    folder = f"usr/lib/modules/{release}"
    modules = kernel.with_dependencies(names, _matching(packages_root, folder)[0])
    for module in modules:
        yield cpio.file(f"{folder}/{module.path}", module.content)
    for name, content in kernel.index(modules).items():
        yield cpio.file(f"{folder}/{name}", content.encode())


def _own_files(recipe_folder: Path) -> Iterator[cpio.Entry]:
    """Executable is what begins with `#!`: an installed package keeps no modes."""
    root = recipe_folder / _OWN_FILES
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        yield cpio.file(str(path.relative_to(root)), content, executable=content.startswith(b"#!"))
    init = recipe_folder / "init"
    if not init.is_file():
        raise ImageError(f"the recipe {recipe_folder.name} has no first process", looked_at=[init])
    yield cpio.file("init", init.read_bytes(), executable=True)
