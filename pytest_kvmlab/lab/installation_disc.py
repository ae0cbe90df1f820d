"""A CD-ROM to install from: GRUB, a kernel and its first root from packages, and the recipe's files."""

from pathlib import Path

from pytest_kvmlab.drivers import cpio, grub_core, iso
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab import initramfs
from pytest_kvmlab.lab.unpacked import kernel_release
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.recipe import FirstRoot

_OWN_FILES = "disc"
_LABEL = "INSTALLER"
_CD_LOADER = "boot/grub/cd.img"
_GRUB = "usr/lib/grub/i386-pc"
_CONFIGURED = (
    "normal",
    "configfile",
    "linux",
    "serial",
    "terminal",
    "echo",
    "test",
    "search",
    "search_label",
)
_FROM_CD = ("biosdisk", "iso9660", *_CONFIGURED)
_FROM_DISK = ("biosdisk", "part_msdos", "ext2", *_CONFIGURED)


def make_disc(recipe_folder: Path, keys: FirstRoot, root: Path, folder: Path, progress: Progress) -> Path:
    """Make the disc.

    Besides the recipe's own files it has `boot/vmlinuz` and `boot/initrd`, and for the disk that is installed
    GRUB's boot sector, `boot/grub/boot.img`, and `boot/grub/core.img`: written from the second sector on, it
    looks for `/boot/grub/grub.cfg` in the first partition of an MBR partition table.

    Args:
        recipe_folder: has files for the disc in its folder `disc`, and `init` and `root` for the first root.
        keys: names what the first root is made of.
        root: the unpacked packages, grub-pc-bin among them.
        folder: where the disc goes.
        progress: told what is being done.

    Returns:
        The disc.

    Raises:
        ImageError: a package lacks a file, or the recipe has no configuration of GRUB's.
        HostError: grub-mkimage or xorriso is not installed.
    """
    progress("making the installation disc", None)
    made = folder / "disc"
    made.mkdir()
    files = _own_files(recipe_folder) | _kernel(recipe_folder, keys, root, made) | _grub(root, made)
    disc = folder / "disc.iso"
    iso.make(disc, _LABEL, files, _CD_LOADER)
    return disc


def _own_files(recipe_folder: Path) -> dict[str, Path]:
    own = recipe_folder / _OWN_FILES
    files = {str(path.relative_to(own)): path for path in sorted(own.rglob("*")) if path.is_file()}
    if "boot/grub/grub.cfg" not in files:
        raise ImageError(
            f"the disc of {recipe_folder.name} would not boot: it has no configuration of GRUB's",
            "write one into the recipe's folder",
            looked_at=[own / "boot/grub/grub.cfg"],
        )
    return files


def _kernel(recipe_folder: Path, keys: FirstRoot, root: Path, made: Path) -> dict[str, Path]:
    release, initrd = kernel_release(root), made / "initrd"
    cpio.write(initramfs.entries(recipe_folder, keys, root, release), initrd)
    return {"boot/vmlinuz": root / "boot" / f"vmlinuz-{release}", "boot/initrd": initrd}


def _grub(root: Path, made: Path) -> dict[str, Path]:
    modules = root / _GRUB
    if not modules.is_dir():
        raise ImageError(
            "the disc would not boot: none of its packages has GRUB", "add grub-pc-bin", looked_at=[modules]
        )
    cd, core = made / "cd.img", made / "core.img"
    grub_core.make(cd, "i386-pc-eltorito", modules, "/boot/grub", _FROM_CD)
    grub_core.make(core, "i386-pc", modules, "(hd0,msdos1)/boot/grub", _FROM_DISK)
    return {_CD_LOADER: cd, "boot/grub/core.img": core, "boot/grub/boot.img": modules / "boot.img"}
