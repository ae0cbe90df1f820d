"""The tree of a Debian system, from a recipe's folder and a lock: `root.tar`."""

import tarfile
from collections.abc import Collection, Sequence
from io import BytesIO
from pathlib import Path

from pytest_kvmlab.drivers import mmdebstrap, root_tar
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.recipes import command_to_build
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.lock import LockedPackage

_FILES, _SETUP = "root", "setup.sh"


def build_tree(
    recipe_folder: Path,
    packages: Sequence[LockedPackage],
    *,
    asked: Collection[str],
    pool: Path,
    target: Path,
    folder: Path,
    parent: Path | None = None,
    boots: str | None = None,
    shell_on_failure: bool = False,
    progress: Progress,
) -> None:
    """Make the tree of an image: packages, then the recipe's folder `root`, then its `setup.sh`.

    Equal arguments give equal bytes, on every machine and with or without root.

    Args:
        recipe_folder: where `image.toml` is; its name is the image's.
        packages: what is installed, on top of what the parent has.
        asked: the names of packages in the recipe.
        pool: where the packages are: `debian.fetch`.
        target: the tar archive to write.
        folder: an empty folder with room for the tree.
        parent: the archive of the image that this one grows from.
        boots: the release of the kernel that its boot loader starts; None: the one installed last.
        shell_on_failure: give the terminal a shell in the tree if `setup.sh` fails.
        progress: told what is being done.

    Raises:
        ImageError: a package or `setup.sh` fails; the message names the image and ends with the output.
        HostError: this machine cannot build a tree.
    """
    name, setup = recipe_folder.resolve().name, recipe_folder / _SETUP
    progress(f"installing {len(packages)} packages", None)
    files = folder / "files"
    files.write_bytes(_archived(recipe_folder / _FILES))
    work = folder / "tree"
    work.mkdir()
    try:
        mmdebstrap.tree(
            target,
            packages,
            pool=pool,
            asked=asked,
            files=files,
            setup=setup if setup.exists() else None,
            parent=parent,
            boots=boots,
            folder=work,
            shell_on_failure=shell_on_failure,
        )
    except mmdebstrap.SetupFailed as error:
        raise ImageError(
            f"image {name}: {error.message}",
            f"nothing of it is kept; look around in it: {command_to_build(recipe_folder)} --shell",
            looked_at=[recipe_folder],
        ) from error
    except ImageError as error:
        raise ImageError(f"image {name}: {error.message}", error.hint, looked_at=[recipe_folder]) from error


def installed(tree: Path) -> str:
    """Say what is installed in a tree.

    Args:
        tree: what `build_tree` made.

    Returns:
        Its `/var/lib/dpkg/status`, for `debian.resolve_system`.

    Raises:
        ImageError: the archive is damaged.
    """
    with root_tar.opened(tree) as system:
        return system.read("var/lib/dpkg/status").decode()


def _archived(folder: Path) -> bytes:
    """Files as they are in the tree: root's, readable by all, executable if they begin with `#!`."""
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.endswith("~"):
                data = path.read_bytes()
                member = tarfile.TarInfo(str(path.relative_to(folder)))
                member.size, member.mtime = len(data), mmdebstrap.EPOCH
                member.mode = 0o755 if data.startswith(b"#!") else 0o644
                archive.addfile(member, BytesIO(data))
    return content.getvalue()
