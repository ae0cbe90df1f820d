"""The types of keys whose text later stands in XML, on a command line or in a file name."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from pytest_kvmlab.spec.characters import one_line


def _path(written: object) -> Path:
    return written if isinstance(written, Path) and one_line(str(written)) else Path(one_line(written))


Line = Annotated[str, BeforeValidator(one_line), WithJsonSchema({"type": "string", "minLength": 1})]
FilePath = Annotated[Path, BeforeValidator(_path), WithJsonSchema({"type": "string", "minLength": 1})]
