"""From a mapping that a person wrote to a frozen model, or to an error that this person understands.

Pydantic reports positions as its own models see them, with labels of unions in between; here they become
the key path as written, what was found there, what is valid, and the nearest valid name.
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.names import nearest

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[int | str, ...]

_LONGEST_VALUE = 60
# What pydantic says about types, in the words of who writes TOML or a mark
_PLAIN = {
    "model_type": "should be a table",
    "dict_type": "should be a table",
    "mapping_type": "should be a table",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "string_type": "should be a text",
}


def validate(model_type: type[Model], data: Mapping[str, object], *, source: str) -> Model:
    """Turn what was written into a model.

    Args:
        model_type: the pydantic model that says what is valid.
        data: the mapping as it was read or given.
        source: where it was written, as the reader knows it: a file, a mark and its place.

    Returns:
        The model, frozen if it says so.

    Raises:
        ConfigError: one line per mistake, with the key's dotted path and the nearest valid name.
    """
    try:
        return model_type.model_validate(data)
    except ValidationError as error:
        raise _config_error(model_type, data, error.errors(include_url=False), source) from None


def dotted(path: Sequence[int | str]) -> str:
    """Write a key path as a person writes it: `guest.web.networks[0].mac`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def all_at_once(source: str, mistakes: Sequence[str], hints: Iterable[str]) -> ConfigError:
    """Tell every mistake in one error.

    Args:
        source: where they were written, as the reader knows it.
        mistakes: one line for each, with the key's dotted path.
        hints: what to do about them; empty and repeated ones are left out.

    Returns:
        The error, to be raised.
    """
    told = mistakes[0] if len(mistakes) == 1 else "\n".join([f"{len(mistakes)} mistakes", *_listed(mistakes)])
    return ConfigError(f"{source}: {told}", "; ".join(dict.fromkeys(filter(None, hints))))


def _config_error(
    model_type: type[BaseModel], data: Mapping[str, object], errors: Sequence[ErrorDetails], source: str
) -> ConfigError:
    placed = _without_wrong_branches([(_written_path(data, error), error) for error in errors])
    mistakes = [_mistake(model_type, path, group) for path, group in placed]
    hints = [_valid_keys(model_type, path, group) for path, group in placed]
    return all_at_once(source, mistakes, hints)


def _listed(lines: Iterable[str]) -> list[str]:
    return [f"  - {line}" for line in lines]


def _written_path(data: object, error: ErrorDetails) -> KeyPath:
    """Leave out the parts of pydantic's location that name a branch of a union, not a key."""
    path: list[int | str] = []
    for part in error["loc"]:
        found, value = _value_at(data, part)
        if found:
            path.append(part)
            data = value
    return (*path, error["loc"][-1]) if error["type"] == "missing" else tuple(path)


def _value_at(data: object, part: int | str) -> tuple[bool, object]:
    if isinstance(data, Mapping) and part in data:
        return True, data[part]
    if isinstance(data, Sequence) and isinstance(part, int) and part < len(data):
        return True, data[part]
    return False, None


def _without_wrong_branches(
    errors: Sequence[tuple[KeyPath, ErrorDetails]],
) -> list[tuple[KeyPath, list[ErrorDetails]]]:
    """Group by path; a mistake inside a table says more than "or it could have been a string"."""
    paths = {path for path, _ in errors}

    def entered(path: KeyPath) -> bool:
        return any(len(other) > len(path) and other[: len(path)] == path for other in paths)

    kept = [
        (path, error) for path, error in errors if not (error["type"].endswith("_type") and entered(path))
    ]
    ordered = sorted(kept, key=lambda item: dotted(item[0]))
    return [(path, [error for _, error in group]) for path, group in groupby(ordered, lambda item: item[0])]


def _mistake(model_type: type[BaseModel], path: KeyPath, errors: Sequence[ErrorDetails]) -> str:
    first = errors[0]
    where = f"{dotted(path)}: " if path else ""
    if first["type"] == "extra_forbidden":
        return f"{where}unknown key{nearest(path[-1], _keys_beside(model_type, first))}"
    if first["type"] == "missing":
        return f"{where}missing"
    wanted = " or ".join(dict.fromkeys(_wanted(error) for error in errors))
    return f"{where}{wanted}{_found(model_type, path, first)}"


def _wanted(error: ErrorDetails) -> str:
    if error["type"] in _PLAIN:
        return _PLAIN[error["type"]]
    said = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return said.removeprefix("Input ")


def _found(model_type: type[BaseModel], path: KeyPath, error: ErrorDetails) -> str:
    value = error["input"]
    if not path or isinstance(value, Mapping) or SecretStr in _annotations_at(model_type, error["loc"]):
        return ""
    shown = repr(value)
    if len(shown) > _LONGEST_VALUE:
        shown = f"{shown[:_LONGEST_VALUE]}…"
    expected = str(error.get("ctx", {}).get("expected", "")) if error["type"] == "literal_error" else ""
    return f"; found {shown}{nearest(value, expected.split(chr(39))[1::2])}"


def _valid_keys(model_type: type[BaseModel], path: KeyPath, errors: Sequence[ErrorDetails]) -> str:
    if errors[0]["type"] != "extra_forbidden":
        return ""
    table = dotted(path[:-1])
    place = f" of {table}" if table else ""
    return f"valid keys{place}: {', '.join(_keys_beside(model_type, errors[0]))}"


def _keys_beside(model_type: type[BaseModel], error: ErrorDetails) -> list[str]:
    tables = _annotations_at(model_type, error["loc"][:-1])
    return [key for table in tables if _is_model(table) for key in _keys(table)]


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _annotations_at(model_type: type[BaseModel], location: Sequence[int | str]) -> list[Any]:
    """Follow a location of pydantic's through the annotations of the models."""
    here: list[Any] = [model_type]
    for part in location:
        there = [inner for annotation in here for inner in _entered(annotation, part)]
        here = there or _branch(here, part)
    return here


def _branch(members: list[Any], label: int | str) -> list[Any]:
    """A location part that enters nothing names a branch of a union: a type, or the tag of one."""
    return [member for member in members if getattr(member, "__name__", None) == label] or members


def _entered(annotation: Any, part: int | str) -> list[Any]:
    if _is_model(annotation):
        fields = _keys(annotation)
        return _members(fields[part]) if part in fields else []
    arguments = get_args(annotation)
    container = get_origin(annotation)
    if not arguments or not isinstance(container, type):
        return []
    if issubclass(container, Mapping):
        return _members(arguments[-1]) if isinstance(part, str) else []
    return _members(arguments[0]) if isinstance(part, int) else []


def _members(annotation: Any) -> list[Any]:
    """The plain types inside a union or an annotated type."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for choice in get_args(annotation) for member in _members(choice)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
