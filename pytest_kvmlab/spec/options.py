"""How to run: the options, their three names, and who wins."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.characters import one_line
from pytest_kvmlab.spec.kernel import parse_kernel
from pytest_kvmlab.spec.names import check_image_name, nearest

Accel = Literal["auto", "kvm", "tcg"]
Keep = Literal["never", "failed", "always"]
FailOn = Literal["failure", "regression", "slowdown"]
KeepTemplates = Literal["run", "keep"]
Reset = Literal["auto", "clone", "rewind", "boot"]

_SWITCH = "KVMLAB"
_ENV_PREFIX = "KVMLAB_"
# Where runs keep their folders: the keeper's own, it has to be known before any option is.
_NOT_AN_OPTION = "KVMLAB_RUNS"
_ON = ("1", "true", "yes", "on")
_OFF = ("", "0", "false", "no", "off")
_MOST_WAITING = 100
_HOSTS = ("auto", "private", "embed")


@dataclass(frozen=True)
class Options:
    """How to run, decided.

    Args:
        lab: whether tests that need guests run.
        lab_file: the lab of tests that name none and have no file of one at or above their folder: a path, or
            the name of a shipped lab.
        host: `auto`, `private`, `embed` or a local libvirt URI.
        accel: the accelerator, or `auto`.
        image: files to use in place of named images.
        kernel: the kernels that tests run under, once under each; without any, that of the image.
        reset: how a test gets a clean guest, or `auto`.
        templates: whether frozen guests are kept for later runs.
        pool: how many clones wait for the next tests, in each process; `None` follows from the processors.
        keep: which guests stay after the run.
        store: where images and caches live; `None` is the user's cache folder.
        artifacts: where logs and screenshots go.
        wait: seconds to wait for memory or for a turn to boot.
        memory: bytes of memory that guests may have altogether; `None` is nine tenths of the machine's.
        timeout_scale: what every timeout is multiplied by; `None` is measured.
        known_issues: the file of issues that are known, and no failure for a time.
        baseline: what the run is compared with at its end: a name, or a path.
        fail_on: what gives the run a status of failure.
        report: where to write a page about the run.
    """

    lab: bool
    lab_file: str | None
    host: str
    accel: Accel
    image: Mapping[str, Path]
    kernel: tuple[str, ...]
    reset: Reset
    pool: int | None
    templates: KeepTemplates
    keep: Keep
    store: Path | None
    artifacts: Path
    wait: float
    memory: int | None
    timeout_scale: float | None
    known_issues: Path | None
    baseline: str | None
    fail_on: FailOn
    report: Path | None


@dataclass(frozen=True)
class Option:
    """One option, from which its flag, environment variable and ini key follow.

    Args:
        name: the name of its field in `Options`.
        default: its value as a person would write it; empty is none.
        parse: reads a written value; raises ValueError with what would be right.
        help: what it does.
        metavar: what its value is called in the help.
        repeatable: whether it is a list, one per line in environment and ini file.
    """

    name: str
    default: str
    parse: Callable[[str], object]
    help: str
    metavar: str
    repeatable: bool = False

    @property
    def flag(self) -> str:
        """The option of the command line: `--kvm-host`."""
        return f"--kvm-{self.name.replace('_', '-')}"

    @property
    def env(self) -> str:
        """The environment variable: `KVMLAB_HOST`."""
        return f"{_ENV_PREFIX}{self.name.upper()}"

    @property
    def ini(self) -> str:
        """The key in pytest's ini file: `kvm_host`."""
        return f"kvm_{self.name}"


@dataclass(frozen=True)
class _Written:
    """A value as somebody wrote it, and where."""

    source: str
    value: str


def _optional(text: str) -> str | None:
    return one_line(text) if text else None


def _optional_path(text: str) -> Path | None:
    return Path(one_line(text)).expanduser() if text else None


def _folder(text: str) -> Path:
    return Path(one_line(text)).expanduser()


def _one_of(*valid: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in valid:
            raise ValueError(f"should be {_either(valid)}{nearest(text, valid)}")
        return text

    return parse


def _either(valid: Sequence[str]) -> str:
    return f"{', '.join(valid[:-1])} or {valid[-1]}"


def _scale(text: str) -> float | None:
    if text == "auto":
        return None
    return _number(text, "'auto' or a number above zero", lambda number: number > 0)


def _count(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or int(text) > _MOST_WAITING:
        raise ValueError(f"should be 'auto' or a number from 0 to {_MOST_WAITING}")
    return int(text)


def _seconds(text: str) -> float:
    return _number(text, "a number of seconds, zero or more", lambda number: number >= 0)


def _memory(text: str) -> int | None:
    if text == "auto":
        return None
    # It brings pydantic, which plain pytest must not pay for.
    from pytest_kvmlab.spec.quantity import parse_size  # noqa: PLC0415

    return parse_size(text)


def _number(text: str, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or not fits(number):
        raise ValueError(f"should be {wanted}")
    return number


def parse_host(text: str) -> str:
    """Read where guests run.

    Remote libvirt is refused: the serial line, forwarded ports and disks of a guest are on the machine that
    runs it, where a test cannot reach them.

    Args:
        text: `auto`, `private`, `embed` or a libvirt URI (https://libvirt.org/uri.html).

    Returns:
        The same text.

    Raises:
        ValueError: a word that is none of these, a URI of a remote machine or of another hypervisor.
    """
    if text in _HOSTS:
        return text
    if "://" not in text and ":///" not in text:
        raise ValueError(f"should be {_either((*_HOSTS, 'a local libvirt URI'))}{nearest(text, _HOSTS)}")
    return _local_uri(one_line(text))


def _local_uri(text: str) -> str:
    uri = urlsplit(text)
    driver, _, transport = uri.scheme.partition("+")
    if uri.netloc or transport not in ("", "unix"):
        raise ValueError(
            "is a remote libvirt: the guest's serial line and forwarded ports would be on that machine, "
            "out of the test's reach; run pytest there instead"
        )
    if driver != "qemu":
        raise ValueError("is not the URI of a QEMU host, such as qemu:///system")
    if uri.path == "/embed":
        raise ValueError("has a root that kvmlab chooses itself: write 'embed'")
    return text


def _images(text: str) -> Mapping[str, Path]:
    return dict(_image(line.strip()) for line in text.splitlines() if line.strip())


def _image(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ValueError("should be NAME=PATH, such as debian-12=/srv/new.qcow2")
    return check_image_name(name), _folder(path)


def _kernels(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_kernel(line.strip()) for line in text.splitlines() if line.strip()))


OPTIONS = (
    Option(
        "lab_file",
        "",
        _optional,
        "the lab of tests without one of their own: a path, or a shipped lab's name",
        "LAB",
    ),
    Option(
        "host", "auto", parse_host, "where guests run: auto, private, embed or a local libvirt URI", "HOST"
    ),
    Option("accel", "auto", _one_of("auto", "kvm", "tcg"), "the accelerator: auto, kvm or tcg", "ACCEL"),
    Option(
        "image", "", _images, "use this file wherever image NAME is asked for (repeatable)", "NAME=PATH", True
    ),
    Option(
        "kernel",
        "",
        _kernels,
        "run each test once under this kernel: a version or a Debian package, or image (repeatable)",
        "SPEC",
        True,
    ),
    Option(
        "reset",
        "auto",
        _one_of("auto", "clone", "rewind", "boot"),
        "how a test gets a clean guest: auto, clone, rewind or boot",
        "HOW",
    ),
    Option(
        "templates",
        "run",
        _one_of("run", "keep"),
        "how long frozen guests, from which others start, are kept: run, or keep for later runs",
        "HOW",
    ),
    Option("pool", "auto", _count, "how many clones wait for the next tests: a number, or auto", "N"),
    Option(
        "keep",
        "never",
        _one_of("never", "failed", "always"),
        "keep guests after the run: never, failed or always",
        "WHEN",
    ),
    Option(
        "store",
        "",
        _optional_path,
        "where images and caches live (default: the user's cache folder)",
        "DIR",
    ),
    Option("artifacts", "kvmlab-artifacts", _folder, "where console logs and screenshots go", "DIR"),
    Option("wait", "600", _seconds, "how long to wait for memory that other guests have", "SECONDS"),
    Option("memory", "auto", _memory, "how much memory the guests of all runs may have together", "SIZE"),
    Option("timeout_scale", "auto", _scale, "what every timeout is multiplied by, or auto", "X"),
    Option(
        "known_issues",
        "",
        _optional_path,
        "a TOML file of known issues, each with a reason, a link and a last day",
        "FILE",
    ),
    Option(
        "baseline",
        "",
        _optional,
        "what the run is compared with at its end: a name as in `kvmlab baseline list`, or a file",
        "NAME",
    ),
    Option(
        "fail_on",
        "failure",
        _one_of("failure", "regression", "slowdown"),
        "what fails the run: failure, or, compared with the baseline, regression or slowdown",
        "WHAT",
    ),
    Option(
        "report", "", _optional_path, "write a page about the run there (needs the extra 'report')", "FILE"
    ),
)
"""The options that take a value; the switch `--kvm-lab` stands apart because no ini file may turn it on."""


def resolve_options(
    command_line: Mapping[str, object], environment: Mapping[str, str], ini: Mapping[str, object]
) -> Options:
    """Decide how to run: the command line wins, then the environment, then the ini file, then the default.

    Args:
        command_line: by the names of `Options`: texts, lists of texts, the switch `lab` as a truth value;
            what was not given is absent or `None`.
        environment: the environment variables; an empty one counts as unset.
        ini: by the names of `Options`, texts or lists of texts; empty ones count as unset.

    Returns:
        The options.

    Raises:
        ConfigError: a wrong value or an unknown `KVMLAB_…` variable; names its source and what is near.
    """
    _check_environment(environment)
    values = {option.name: _value(option, command_line, environment, ini) for option in OPTIONS}
    return Options(lab=bool(command_line.get("lab")) or _switched_on(environment), **cast(Any, values))


def _check_environment(environment: Mapping[str, str]) -> None:
    valid = [option.env for option in OPTIONS]
    for name in environment:
        if name.startswith(_ENV_PREFIX) and name not in (*valid, _NOT_AN_OPTION):
            raise ConfigError(
                f"environment variable {name}: no such option{nearest(name, valid)}",
                f"unset it, or use one of {', '.join(valid)}",
            )


def _switched_on(environment: Mapping[str, str]) -> bool:
    value = environment.get(_SWITCH, "").lower()
    if value not in (*_ON, *_OFF):
        raise ConfigError(f"environment variable {_SWITCH}: should be 1 or 0; found {value!r}")
    return value in _ON


def _value(
    option: Option,
    command_line: Mapping[str, object],
    environment: Mapping[str, str],
    ini: Mapping[str, object],
) -> object:
    sources = {
        f"command line option {option.flag}": command_line.get(option.name),
        f"environment variable {option.env}": environment.get(option.env),
        f"ini key {option.ini}": ini.get(option.name),
    }
    written = [_Written(source, _text(value)) for source, value in sources.items() if value]
    return _parsed(option, written[0] if written else _Written("default", option.default))


def _text(value: object) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _parsed(option: Option, written: _Written) -> object:
    try:
        return option.parse(written.value)
    except ValueError as error:
        raise ConfigError(
            f"{written.source}: {error}; found {written.value!r}",
            f"{option.flag}={option.metavar}: {option.help}",
        ) from None
