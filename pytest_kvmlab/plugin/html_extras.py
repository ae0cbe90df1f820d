"""Pictures for users of pytest-html; its own page shows the sections of a report anyway."""

import base64
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest

from pytest_kvmlab.report.evidence import Evidence

_LARGEST = 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


def add_pictures(report: pytest.TestReport, seen: Iterable[Evidence]) -> None:
    """Give a report the screens of its guests, as pytest-html wants them (its guide, "Extra content").

    Args:
        report: of a failed test.
        seen: what its guests showed.
    """
    pictures = [picture for each in seen if (picture := _picture(each))]
    vars(report)["extras"] = [*getattr(report, "extras", []), *pictures]


def _picture(evidence: Evidence) -> dict[str, Any] | None:
    with suppress(OSError):
        if evidence.screenshot and (data := evidence.screenshot.read_bytes()[:_LARGEST]).startswith(_PNG):
            return {
                "name": f"screen of {evidence.guest}",
                "format_type": "image",
                "content": base64.b64encode(data).decode(),
                "mime_type": "image/png",
                "extension": "png",
            }
    return None
