"""Dataclasses to and from JSON, strictly: what does not fit a field's type is refused, with the
field's path.

Scope: frozen dataclasses of numbers, strings, booleans, None, enums, literals, tuples, mappings
from strings or enums, and dataclasses of these. What a dataclass's `__post_init__` refuses is told
with the path as well.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class PlanError(ValueError):
    """A file or value that is not what it should be; the message names the field."""


def encode(value: Any) -> Any:
    """`value` as what `json.dumps` takes. Fields keep their order."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(encode(key)): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], data: Any, path: str) -> T:
    """`data`, as `json.loads` gives it, as a `kind`; `path` names it in errors.

    Raises:
        PlanError: for a field that is missing, unknown, of another type or out of range.
    """
    result: T = _decode(kind, data, path)
    return result


def loads(text: str, path: str) -> Any:
    """Parse JSON (RFC 8259: no NaN, no infinity), refusing names that occur twice.

    Raises:
        PlanError: for a text that is not JSON; says where it stops being so.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        for name in names:
            if names.count(name) > 1:
                raise PlanError(f"{path}: {name!r} occurs twice in one object")
        return dict(items)

    def constant(name: str) -> NoReturn:
        raise PlanError(f"{path}: {name} is no JSON number")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except PlanError:
        raise
    except (ValueError, RecursionError) as error:  # Python reads no int of thousands of digits
        raise PlanError(f"{path} is not JSON: {error}") from error


def _decode(kind: Any, data: Any, path: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, data, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(arguments, data, path)
    if origin is Literal:
        return _one_of(arguments, data, path)
    if origin is tuple:
        return _tuple(arguments, data, path)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(arguments, data, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(_one_of(tuple(member.value for member in kind), data, path))
    return _scalar(kind, data, path)


def _dataclass(kind: type[Any], data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise _refusal(path, data, "an object")
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind) if f.init}
    for name in data:
        if name not in known:
            raise PlanError(f"{path}.{name} is no field: {path} has {', '.join(known)}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise PlanError(f"{path}.{name} is missing")
    values = {name: _decode(hints[name], item, f"{path}.{name}") for name, item in data.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise PlanError(f"{path}.{error}") from error


def _union(kinds: tuple[Any, ...], data: Any, path: str) -> Any:
    if data is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    assert len(others) == 1, "a union of more than one type and None cannot be told apart in JSON"
    return _decode(others[0], data, path)


def _tuple(arguments: tuple[Any, ...], data: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _refusal(path, data, "a list")
    kinds = arguments
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds = (arguments[0],) * len(data)
    if len(kinds) != len(data):
        raise _refusal(path, data, f"a list of {len(kinds)}")
    pairs = zip(kinds, data, strict=True)
    return tuple(_decode(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(pairs))


def _mapping(arguments: tuple[Any, ...], data: Any, path: str) -> dict[Any, Any]:
    if not isinstance(data, dict):
        raise _refusal(path, data, "an object")
    key_kind, item_kind = arguments
    return {
        _decode(key_kind, key, f"{path}, name"): _decode(item_kind, item, f"{path}.{key}")
        for key, item in data.items()
    }


def _scalar(kind: Any, data: Any, path: str) -> Any:
    takes = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    assert kind in takes, f"{path}: a field of type {kind} has no JSON form"
    if type(data) in (int, float) and not abs(data) <= sys.float_info.max:  # NaN is not either
        raise _refusal(path, data, f"{takes[kind]} within a double's range")
    if kind is float and type(data) is int:
        data = float(data)
    if type(data) is not kind:
        raise _refusal(path, data, takes[kind])
    return data


def _one_of(values: tuple[Any, ...], data: Any, path: str) -> Any:
    for value in values:
        if type(value) is type(data) and value == data:
            return value
    raise _refusal(path, data, f"one of {', '.join(map(repr, values))}")


def _refusal(path: str, data: Any, takes: str) -> PlanError:
    shown = repr(data)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return PlanError(f"{path} is {shown}: takes {takes}")
