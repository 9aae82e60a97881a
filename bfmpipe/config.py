"""Typed settings: a strict base class, and errors that name the place and what would be valid."""

import difflib
import json
import math
import re
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

from bfmpipe.types import UserError

C = TypeVar("C", bound="Config")

_SHOWN_ERRORS = 3


class Config(pydantic.BaseModel):
    """A section of settings: immutable, strictly typed, and closed to unknown names."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,  # JSON cannot hold them
        validate_default=True,  # `rate: float = 1` becomes 1.0, as it would from a file
        protected_namespaces=(),
    )


class PresetConfig(Config):
    """A section with presets, which are sets of defaults by name: what is set beside one wins.

    A preset may name sections in part: the rest of such a section has its own defaults, and what is
    set in it beside the preset wins there too.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    preset: str | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        settings, name = given, given.get("preset")
        if isinstance(name, str):
            if name not in cls.presets:
                valid = _choices(name, list(cls.presets))
                raise ValueError(f"there is no preset {_show(name)}; {valid}")
            settings = _laid_over(cls.presets[name], given)
        # behind a validator of ours pydantic no longer takes JSON's lists for tuples
        return _with_tuples(settings)


def _laid_over(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset with what is given beside it, section by section."""
    merged = {**preset, **given}
    for key, section in preset.items():
        if isinstance(section, Mapping) and isinstance(given.get(key), Mapping):
            merged[key] = _laid_over(section, given[key])
    return merged


def _with_tuples(value: Any) -> Any:
    """The same with a tuple for every list."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def spelt(pattern: str, said: str) -> pydantic.AfterValidator:
    """A condition on a text: that the whole of it matches `pattern`, which `said` is in words."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{_show(text)} is not {said}")
        return text

    return pydantic.AfterValidator(check)


def parse(cls: type[C], mapping: object, where: str, *, at: str = "") -> C:
    """Check a mapping read from YAML or JSON against a section.

    Lists are accepted for tuples and whole numbers for floats; nothing else is converted.

    Args:
        cls: the section's class.
        mapping: what was read.
        where: the file, or whatever else the message should begin with.
        at: the dotted place of the mapping inside ``where``, if it is not the whole.

    Raises:
        UserError: up to three complaints, each with its place and the valid choices.
    """
    top = tuple(at.split(".")) if at else ()
    try:
        _check_plain(mapping, top)
        return cls.model_validate_json(json.dumps(mapping))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except pydantic.ValidationError as error:
        errors = [item for item in error.errors(include_url=False) if not _follows(item)]
        found = [_complaint(cls, item, top) for item in errors]
    message = "; ".join(found[:_SHOWN_ERRORS])
    more = f" (and {len(found) - _SHOWN_ERRORS} more)" if len(found) > _SHOWN_ERRORS else ""
    raise UserError(f"{where}: {message}{more}")


def canonical(config: Config | dict[str, Any]) -> str:
    """Write settings as JSON with sorted keys and no spaces: equal settings, equal text.

    Raises:
        UserError: a value is none that JSON can hold.
    """
    plain = config.model_dump(mode="json") if isinstance(config, Config) else config
    _check_plain(plain, ())
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        UserError: the file is missing, is not valid YAML, repeats a key, or holds no mapping.
    """
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: the top level is {_kind(content)}, not a mapping")
    return content


class _Loader(yaml.SafeLoader):
    """YAML as `yaml.safe_load` reads it, but a key may stand only once in a mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; here its keys are still its own, before any are merged (<<) in."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if first := lines.get((key.tag, key.value)):
                    problem = f"'{key.value}' is already set in line {first}"
                    raise yaml.composer.ComposerError(problem=problem, problem_mark=key.start_mark)
                lines[key.tag, key.value] = line
        return node


Place = tuple[str | int, ...]


def _check_plain(value: object, place: Place) -> None:
    """Refuse what JSON cannot hold; `json.dumps` would convert or misplace some of it."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                at = f"{_dotted(place)}: " if place else ""
                raise UserError(f"{at}the key {_show(key)} is {_kind(key)}, not text (quote it)")
            _check_plain(item, (*place, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, (*place, index))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{_dotted(place)}: {value} is not a finite number")
    elif value is not None and not isinstance(value, str | int):
        raise UserError(f"{_dotted(place)}: {_show(value)} is {_kind(value)}, not text or a number")


# One complaint of pydantic's, in words.

_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "path_type": "text",
    "string_type": "text",
    "tuple_type": "a list",
}


def _follows(error: Any) -> bool:
    """Tell whether a list is too short only because of wrong items, which have errors already."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _complaint(cls: type[Config], error: Any, top: Place) -> str:
    """Say one of pydantic's errors (``ErrorDetails``) in words, beginning with its place."""
    loc, owner = _resolve(cls, tuple(part for part in error["loc"] if part != "[key]"))
    place = _dotted(top + loc)
    value, shown = error["input"], _show(error["input"])
    at = f"{place}: " if place else ""
    match error["type"]:
        case "extra_forbidden":
            valid = list(owner.model_fields) if owner else []
            return f"{place} is not a setting; {_choices(str(loc[-1]), valid)}"
        case "too_short":
            return f"{at}has {len(value)} entries, but needs {error['ctx']['min_length']} or more"
        case "missing":
            return f"{place} is missing"
        case "literal_error" | "enum":
            valid = [text.strip("'") for text in re.split(", | or ", error["ctx"]["expected"])]
            return f"{at}{shown} is not a choice; {_choices(str(value), valid)}"
        case "value_error" | "assertion_error":
            return f"{at}{error['ctx']['error']}"
        case kind if kind in _WANTED:
            wanted = _WANTED[kind]
            if value is None:
                return f"{place or 'it'} is empty, not {wanted}"
            if kind == "int_type" and isinstance(value, float):
                hint = f" (write {value:.0f})" if value.is_integer() else ""
                return f"{at}{shown} is not {wanted}{hint}"
            return f"{at}{shown} is {_kind(value)}, not {wanted}{_number_hint(kind, value)}"
        case _:
            said = str(error["msg"])
            tail = said.removeprefix("Input") if said.startswith("Input ") else f": {said}"
            return f"{at}{shown}{tail}"


def _choices(given: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, valid, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"{guess}valid: {', '.join(valid) or 'none'}"


def _number_hint(kind: str, value: object) -> str:
    """Tell how to write a number that YAML reads as text: 1e-4 has no dot, 1.0e4 no sign."""
    if kind not in ("float_type", "int_type") or not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if not math.isfinite(number) or (kind == "int_type" and not number.is_integer()):
        return ""
    mantissa, e, exponent = value.strip().lower().partition("e")
    if not e:
        return " (write it without quotes)"
    mantissa += "" if "." in mantissa else ".0"
    exponent = exponent if exponent[0] in "+-" else f"+{exponent}"
    right = f"{number:.0f}" if kind == "int_type" else f"{mantissa}e{exponent}"
    return f" (YAML reads {value} as a string; write {right})"


def _resolve(cls: type[Config], loc: Place) -> tuple[Place, type[Config] | None]:
    """Follow an error's location down the types.

    Returns:
        The location without the names that pydantic inserts for the members of unions, and the
        class that its last part belongs to, if that is a section.
    """
    place: list[str | int] = []
    members: list[Any] = [cls]
    inner: Sequence[Any]
    owner = None
    for part in loc:
        owner = next((m for m in members if _is_section(m) and part in m.model_fields), None)
        if owner:
            members = list(_members(owner.model_fields[str(part)].annotation))
        elif isinstance(part, int):
            inner = [arg for m in members for arg in get_args(m) if arg is not ...]
            members = [leaf for arg in inner for leaf in _members(arg)]
        elif len(members) > 1:  # a union's member
            members = [m for m in members if getattr(m, "__name__", None) == part]
            continue
        else:
            owner = next(filter(_is_section, members), None)
            inner = get_args(members[0])[1:] if members else []
            members = [leaf for arg in inner for leaf in _members(arg)]
        place.append(part)
    return tuple(place), owner


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of a type, None apart."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation is not types.NoneType:
        yield annotation


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _dotted(place: Place) -> str:
    """Write ``("tasks", 0, "name")`` as ``tasks[0].name``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _kind(value: object) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def _show(value: object) -> str:
    """Write a value briefly and as YAML would: `true`, not `True`."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str() | dict() | list() | tuple() | float() | int():
            return reprlib.repr(value)
        case _:
            return str(value)
