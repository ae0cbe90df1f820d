"""The applications of a lab: `[app.wiki]`."""

from functools import partial
from typing import Annotated

from pydantic import AfterValidator, Field, StrictInt, WithJsonSchema

from pytest_kvmlab.spec.characters import one_line
from pytest_kvmlab.spec.guest import Keys
from pytest_kvmlab.spec.names import SHORT_NAME, check_guest_name, check_short_name


def _url_path(written: str) -> str:
    if not one_line(written).startswith("/") or " " in written:
        raise ValueError("should be the path of a URL, such as '/wiki/'")
    return written


_NAME = WithJsonSchema({"type": "string", "pattern": f"^{SHORT_NAME}$"})
GuestName = Annotated[str, AfterValidator(check_guest_name), _NAME]
AppName = Annotated[str, AfterValidator(partial(check_short_name, kind="an application")), _NAME]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]
UrlPath = Annotated[
    str, AfterValidator(_url_path), WithJsonSchema({"type": "string", "pattern": r"^/[^\s]*$"})
]


class LabApp(Keys):
    """An application: which guest it runs in and the TCP port that it answers on.

    Several may share a guest. `path` is where a URL of it begins.
    """

    guest: GuestName
    port: Port
    path: UrlPath = "/"
