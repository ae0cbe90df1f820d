"""Which complaints of its kernel a test, a guest or an image expects."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from pytest_kvmlab.kernel_log.finding import KINDS, Finding, Kind
from pytest_kvmlab.spec.characters import one_line
from pytest_kvmlab.spec.names import nearest

_FORMS = f"write KIND or 'KIND: PATTERN'; kinds: {', '.join(KINDS)}"


@dataclass(frozen=True)
class Expectation:
    """Complaints of one kind, all of them or those with a match of a regular expression in their title."""

    kind: Kind
    pattern: str = ""

    def covers(self, finding: Finding) -> bool:
        """Whether a complaint is one of these."""
        told = f"{finding.title} {finding.where}"
        return finding.kind == self.kind and bool(re.search(self.pattern, told))


def parse_expectation(written: object) -> Expectation:
    """Read which complaints are meant.

    Args:
        written: `KIND`, or `KIND: PATTERN` with a regular expression that is searched in the finding's title.

    Returns:
        The expectation.

    Raises:
        ValueError: there is no such kind, or the pattern is no regular expression.
    """
    name, _, pattern = one_line(written).partition(":")
    kind = next((kind for kind in KINDS if kind == name.strip()), None)
    if kind is None:
        raise ValueError(f"no such kind of complaint{nearest(name, KINDS)}: {_FORMS}")
    return Expectation(kind, regular_expression(pattern.strip()))


def regular_expression(pattern: str) -> str:
    """Accept a regular expression.

    Raises:
        ValueError: it is none.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression ({error})") from None
    return pattern


ExpectationKey = Annotated[
    Expectation,
    PlainValidator(parse_expectation),
    WithJsonSchema({"type": "string", "description": _FORMS, "examples": ["panic", "warning: drivers/usb"]}),
]
