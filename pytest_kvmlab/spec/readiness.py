"""What has to be true before a guest counts as ready."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from pytest_kvmlab.spec.characters import one_line
from pytest_kvmlab.spec.names import nearest


@dataclass(frozen=True)
class UnitReady:
    """A systemd unit is active: `unit:NAME`."""

    unit: str


@dataclass(frozen=True)
class PortReady:
    """Something in the guest listens on a TCP port: `port:NUMBER`."""

    port: int


@dataclass(frozen=True)
class ConsoleReady:
    """The serial console showed a match of a regular expression: `console:PATTERN`."""

    pattern: str


@dataclass(frozen=True)
class CommandReady:
    """A command in the guest ends with exit status 0."""

    command: str


Readiness = UnitReady | PortReady | ConsoleReady | CommandReady

_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")


def parse_readiness(written: object) -> Readiness:
    """Read a readiness condition.

    Args:
        written: `unit:NAME`, `port:NUMBER`, `console:PATTERN`, or a command for the guest's shell.

    Returns:
        The condition.

    Raises:
        ValueError: it is none of them, or starts with a word and a colon that is no known kind.
    """
    text = one_line(written)
    tagged = re.match(r"([a-z]+):(?=\S)", text)
    if not tagged:
        return CommandReady(text)
    kind, value = tagged[1], text[tagged.end() :]
    if kind not in _PARSERS:
        raise ValueError(f"no such kind of readiness{nearest(kind, _PARSERS)}: {_FORMS}")
    return _PARSERS[kind](value)


def _unit(name: str) -> UnitReady:
    if not _UNIT_NAME.fullmatch(name):
        raise ValueError("is not the name of a systemd unit")
    return UnitReady(name)


def _port(number: str) -> PortReady:
    if not re.fullmatch(r"[0-9]{1,5}", number) or not 0 < int(number) < 2**16:
        raise ValueError("is not a TCP port: 1 to 65535")
    return PortReady(int(number))


def _console(pattern: str) -> ConsoleReady:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression ({error})") from None
    return ConsoleReady(pattern)


_PARSERS: Mapping[str, Callable[[str], Readiness]] = {"unit": _unit, "port": _port, "console": _console}
_FORMS = "write 'unit:NAME', 'port:NUMBER', 'console:PATTERN' or a command"

ReadyKey = Annotated[
    Readiness,
    PlainValidator(parse_readiness),
    WithJsonSchema({"type": "string", "description": _FORMS, "examples": ["unit:ssh.service", "port:80"]}),
]
