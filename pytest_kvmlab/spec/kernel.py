"""Which kernel a guest boots: as somebody writes it, in an image's name, as a version that fits."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pytest_kvmlab.spec.characters import one_line
from pytest_kvmlab.spec.names import check_image_name

ITS_OWN = "image"
"""The kernel that an image has."""

PACKAGE = "linux-image-"
"""What the names of Debian's kernel packages begin with; the kernel's release follows."""

# Debian calls releases 6.1.0-49-cloud-amd64 and 6.12.117+deb12-amd64; metapackages have fewer numbers.
_RELEASE = re.compile(r"\d+\.\d+\.\d+[a-z0-9.+~-]*")
_VERSION = re.compile(r"(?P<numbers>\d+(\.\d+)+(-\d+)?)([+~][a-z0-9.+~]+)?(-(?P<flavour>[a-z][a-z0-9-]*))?")
_PACKAGE = re.compile(r"linux-image-[a-z0-9.+-]+")
_BOUND = re.compile(r"(?P<compare>>=|<=|==|>|<)\s*(?P<version>\d+(\.\d+)*(-\d+)?)")
_COMPARE: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
# The words of Debian's machines with which names of kernels end.
_ARCHITECTURES = {
    "amd64": "amd64", "arm64": "arm64", "armmp": "armhf", "armmp-lpae": "armhf", "686": "i386",
    "686-pae": "i386", "powerpc64le": "ppc64el", "riscv64": "riscv64", "s390x": "s390x", "loong64": "loong64",
}  # fmt: skip
_FORMS = (
    "should be 'image', a version such as '6.12' or '6.1.0-49', a Debian package such as "
    "'linux-image-cloud-amd64', or the path of a vmlinuz, with a slash"
)


def parse_kernel(written: object) -> str:
    """Accept how somebody names a kernel.

    Args:
        written: `image`, a version, the name of a Debian package, or a path.

    Returns:
        The same text.

    Raises:
        ValueError: it is none of these.
    """
    text = one_line(written)
    if not (is_named(text) or "/" in text):
        raise ValueError(_FORMS)
    return text


def is_named(text: str) -> bool:
    """Whether a text names a kernel, or else a file."""
    return text == ITS_OWN or bool(_VERSION.fullmatch(text) or _PACKAGE.fullmatch(text))


def kernel_or_file(written: object) -> str | Path:
    """Read the key `kernel`: what neither names a kernel nor says which will do is a file for QEMU to start.

    Raises:
        ValueError: it is no line of text, or looks like a range of versions and is none.
    """
    if isinstance(written, Path):
        return written
    text = one_line(written)
    if text[0] in "<>=":
        return _range(text)
    return text if is_named(text) else Path(text)


def is_range(kernel: object) -> bool:
    """Whether the key `kernel` says which kernels will do, and names none."""
    return isinstance(kernel, str) and kernel[0] in "<>="


def _range(text: str) -> str:
    if not all(_BOUND.fullmatch(bound.strip()) for bound in text.split(",")):
        raise ValueError("should be one of >= > == < <= and a version, such as '>=6.12' or '>=6.1, <6.12'")
    return text


def fits(wanted: str, release: str) -> bool:
    """Whether a kernel is one of a range.

    Each bound counts as many numbers as it has: 6.12.117 is `==6.12` and `<=6.12`.

    Args:
        wanted: `>=6.12`, or several of these with commas between them.
        release: as in `uname -r`.
    """
    have = numbers(release)
    bounds = [(bound["compare"], numbers(bound["version"])) for bound in _BOUND.finditer(wanted)]
    return all(_COMPARE[compare](have[: len(want)], want) for compare, want in bounds)


def image_with(image: str, kernel: str) -> str:
    """Name an image with another kernel.

    Args:
        image: the image; if it is named with another kernel already, this one takes its place.
        kernel: a version, or the name of a package.

    Returns:
        `debian-12+6.12`; the image's own name for its own kernel.

    Raises:
        ValueError: the name would be too long, or have characters that an image's name cannot have.
    """
    plain = split_image(image)[0]
    return plain if kernel == ITS_OWN else check_image_name(f"{plain}+{kernel}")


def split_image(image: str) -> tuple[str, str]:
    """Take the name of an image with another kernel apart.

    Args:
        image: `debian-12+6.12`, or the name of an image as it is.

    Returns:
        The image's own name, and the kernel, as `parse_kernel` takes it; `image` for its own.
    """
    name, _, kernel = image.partition("+")
    return (name, kernel) if kernel and is_named(kernel) else (image, ITS_OWN)


def release_of(package: str) -> str | None:
    """The release of the kernel in a package; None for a metapackage, and for what has no kernel.

    Args:
        package: its name.
    """
    release = package.removeprefix(PACKAGE)
    whole = package.startswith(PACKAGE) and _RELEASE.fullmatch(release)
    return release if whole and not release.endswith(("-dbg", "-unsigned")) else None


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: those of `6.1.0-49-amd64` are 6, 1, 0 and 49."""
    found = re.match(r"\d+(\.\d+)*(-\d+)?", version)
    return tuple(map(int, re.findall(r"\d+", found[0]))) if found else ()


def architecture_of(kernel: str) -> str | None:
    """The architecture of Debian that a kernel's name ends with, if it says one."""
    return next((name for word, name in _ARCHITECTURES.items() if kernel.endswith(f"-{word}")), None)


def best_kernel(wish: str, offers: Iterable[tuple[str, str]], *, architecture: str) -> str | None:
    """Choose a kernel by its version.

    Args:
        wish: a version as `uname -r` or the package has it, as many of its numbers as are said, with or
            without a flavour: `6.12`, `6.1.0-49-cloud`, `6.1.174-1`.
        offers: the release and the version of each package.
        architecture: Debian's name of it.

    Returns:
        The newest release that fits; None if there is none.
    """
    asked = _VERSION.fullmatch(wish)
    if not asked:
        return None
    want, flavour = numbers(asked["numbers"]), _flavour(asked["flavour"], architecture)
    fitting = [
        release
        for release, version in offers
        if flavour_of(release, architecture) == flavour
        and want in (numbers(release)[: len(want)], numbers(version)[: len(want)])
    ]
    return max(fitting, key=in_order, default=None)


def flavour_of(release: str, architecture: str) -> str:
    """The flavour of one of Debian's kernels: `amd64`, `cloud-amd64`, `rt-amd64`.

    Args:
        release: as in `uname -r`.
        architecture: Debian's name of it.
    """
    found = re.search(rf"-((?:[a-z]+-)?{re.escape(architecture)})$", release)
    return found[1] if found else ""


def _flavour(written: str | None, architecture: str) -> str:
    if not written:
        return architecture
    return written if written.endswith(architecture) else f"{written}-{architecture}"


def in_order(release: str) -> list[tuple[str, int]]:
    """What to sort releases by, so that numbers count as numbers."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", release)]
