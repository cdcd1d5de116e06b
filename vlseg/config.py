"""Typed dataclasses from YAML and ``a.b=c`` overrides: the engine, not the settings themselves.

Every room defines its own dataclasses; ``load(cls, "file.yaml", ["optim.lr=1e-4"])`` fills them. Types are checked, not
guessed: an unknown key is an error that names the nearest one, a wrong type one that names key, value and file.

Understood annotations: int, float, str, bool, None and unions with it, Literal, Any, list[T], tuple[T, ...] and
tuple[A, B], dict[str, T], Path and nested dataclasses. ``field(metadata={"help": "..."})`` is what `describe` prints.
A field with ``metadata={"main": True}`` stands for its dataclass: where it is ``source`` of the key ``model``,
``model=NAME`` and ``model: NAME`` say ``model.source``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from vlseg.types import VLSegError

T = TypeVar("T")

# YAML 1.1 wants a dot and a signed exponent in a float, so "1e-4" arrives as text; number fields take such text.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+|[+-]?(inf|nan)", re.IGNORECASE)


def load(cls: type[T], path: str | Path | None = None, overrides: Iterable[str] = ()) -> T:
    """An instance of the dataclass ``cls``: its defaults, then the YAML file, then ``a.b=c`` overrides in order.

    Keys left out of a nested dataclass keep the values of its default; a dict or list in the file replaces the default
    one. The value of an override is YAML: ``flag=true``, ``x=[a, b]``, ``y=null``; ``a.b=c`` on a dict adds the key,
    ``a.0.b=c`` reaches into a list. Raises VLSegError, in one line, for a file that is missing or no YAML (line and
    column), a duplicate or unknown key (with the nearest), a value of the wrong type, or one that ``__post_init__``
    refuses.
    """
    source = str(path) if path is not None else "overrides"
    tree = read_yaml(path) if path is not None else {}
    places: dict[str, str] = {}
    for override in overrides:
        _apply(cls, tree, override, places)
    return from_dict(cls, tree, source, places)


def from_dict(cls: type[T], tree: Mapping[str, Any], source: str = "config", places: Mapping[str, str] = {}) -> T:
    """``cls`` from plain nested data. ``source`` names the file in errors, ``places`` other origins by dotted key."""
    return typing.cast(T, _Builder(source, places).dataclass(cls, tree, ""))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, ``{}`` for an empty one. Raises VLSegError, with line and column."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VLSegError(f"cannot read the config {path}: {getattr(error, 'strerror', None) or error}") from error
    data = _parse(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise VLSegError(f"{path}: a config is a mapping of keys to values, got {type(data).__name__}")
    return data


def to_dict(instance: Any) -> dict[str, Any]:
    """All values of a dataclass instance as plain data (paths as text, tuples as lists), ready for YAML or JSON."""
    return typing.cast(dict[str, Any], _plain(instance))


def dump_yaml(instance: Any) -> str:
    """All values, resolved, in the order of the fields; `load` of this text gives an equal instance."""
    tree = to_dict(instance)
    options: dict[str, Any] = {"Dumper": _Dumper, "sort_keys": False, "default_flow_style": False}
    text = yaml.dump(tree, allow_unicode=True, **options)
    if any(character in text for character in "\x85\u2028\u2029"):
        # PyYAML writes Unicode's own line breaks raw and reads them back as spaces; escaped they survive.
        text = yaml.dump(tree, allow_unicode=False, **options)
    return text


def describe(cls: type) -> str:
    """One line a key: ``a.b: type = default  # help``, nested dataclasses below their parent."""
    return "\n".join(_describe(cls, "", None))


def _describe(cls: type, prefix: str, base: Any) -> Iterable[str]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        hint, key = hints[f.name], prefix + f.name
        default = _default(f) if base is None else getattr(base, f.name)
        shown = "required" if default is dataclasses.MISSING else _show(default)
        help_text = f.metadata.get("help", "")
        inner = [a for a in (hint, *typing.get_args(hint)) if _is_dataclass_type(a)]
        # A nested part shows its own keys below; its default repr would only repeat them.
        line = f"{key}: {type_name(hint)}" + ("" if _is_dataclass_type(hint) else f" = {shown}")
        yield line + (f"  # {help_text}" if help_text else "")
        for part in inner if typing.get_origin(hint) not in (list, tuple, dict) else []:
            yield from _describe(part, key + ".", default if isinstance(default, part) else None)


def type_name(hint: Any) -> str:
    """A type annotation as people write it: ``float | None``, ``list[str]``, ``'a' | 'b'`` for a Literal."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(a) for a in args)
    if origin is Literal:
        return " | ".join(repr(a) for a in args)
    if origin is not None:
        inside = ", ".join("..." if a is Ellipsis else type_name(a) for a in args)
        return f"{origin.__name__}[{inside}]"
    return getattr(hint, "__name__", str(hint))


class _Builder:
    """Walks annotations and plain data together; knows the place of every value for the sake of the messages."""

    def __init__(self, source: str, places: Mapping[str, str]):
        self.source = source
        self.places = places

    def fail(self, key: str, text: str) -> VLSegError:
        parts = key.split(".")
        # The override that set the key or a part around it, else the last one that reached inside it.
        candidates = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        candidates += [k for k in reversed(list(self.places)) if k.startswith(key + ".")]
        place = next((self.places[k] for k in candidates if k in self.places), self.source)
        return VLSegError(f"{place}: {text}")

    def wrong(self, key: str, value: Any, hint: Any) -> VLSegError:
        return self.fail(key, f"{key} = {_show(value)} is {_kind(value)}, expected {type_name(hint)}")

    def dataclass(self, cls: type, tree: Any, key: str, base: Any = None) -> Any:
        """``cls`` from a mapping; keys left out come from the instance ``base``, else from the defaults of ``cls``."""
        if isinstance(tree, cls):
            return tree
        if tree is None:
            tree = {}  # "optim:" with nothing below it: all defaults
        if isinstance(tree, str) and (main := _main_field(cls)):
            tree = {main: tree}
        if not isinstance(tree, Mapping):
            raise self.wrong(key, tree, cls)
        hints = typing.get_type_hints(cls)
        names = {f.name: f for f in dataclasses.fields(cls) if f.init}
        prefix = key + "." if key else ""
        for name in tree:
            if name not in names:
                raise self.fail(prefix + str(name), _unknown(prefix, str(name), list(names)))
        values: dict[str, Any] = {}
        for name, f in names.items():
            hint, default = hints[name], _default(f) if base is None else getattr(base, name)
            if name in tree and _is_dataclass_type(hint) and type(default) is hint:
                values[name] = self.dataclass(hint, tree[name], prefix + name, default)
            elif name in tree:
                values[name] = self.value(hint, tree[name], prefix + name)
            elif default is dataclasses.MISSING:
                raise self.fail(key, f"{prefix}{name} is required ({type_name(hint)}) and not set")
            else:
                values[name] = default
        try:
            return cls(**values)
        except VLSegError as error:
            raise self.fail(key, str(error)) from error
        except (ValueError, TypeError) as error:
            raise self.fail(key, f"{key or cls.__name__}: {error}") from error

    def value(self, hint: Any, value: Any, key: str) -> Any:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if origin in (Union, types.UnionType):
            return self.union(hint, args, value, key)
        if origin is Literal:
            for choice in args:
                if type(choice) is type(value) and choice == value:
                    return choice
                if isinstance(value, bool) and choice in (("yes", "on") if value else ("no", "off")):
                    return choice  # YAML 1.1 takes these words for booleans
            raise self.fail(key, f"{key} = {_show(value)}, expected one of {', '.join(map(repr, args))}")
        if _is_dataclass_type(hint):
            return self.dataclass(hint, value, key)
        if list in (hint, origin) or tuple in (hint, origin):
            return self.sequence(hint, origin or hint, args, value, key)
        if dict in (hint, origin):
            if not isinstance(value, Mapping):
                raise self.wrong(key, value, hint)
            kind_key, kind_value = args or (str, Any)
            return {
                self.value(kind_key, k, f"{key}.{k}"): self.value(kind_value, v, f"{key}.{k}") for k, v in value.items()
            }
        return self.scalar(hint, value, key)

    def sequence(self, hint: Any, origin: Any, args: tuple[Any, ...], value: Any, key: str) -> Any:
        if not isinstance(value, list | tuple):
            raise self.wrong(key, value, hint)
        if not args or origin is list or args[-1] is Ellipsis:
            kinds = [args[0] if args else Any] * len(value)
        elif len(args) == len(value):
            kinds = list(args)
        else:
            raise self.fail(key, f"{key} = {_show(value)} has {len(value)} values, expected {type_name(hint)}")
        return origin(self.value(k, v, f"{key}.{i}") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))

    def union(self, hint: Any, args: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        if len(options) == 1:
            return self.value(options[0], value, key)
        # Text such as 1e-4 is a number where one is allowed; else the exact type wins, whatever the order written.
        number = isinstance(value, str) and _NUMBER.fullmatch(value)
        exact = [a for a in options if (a is float if number else _holds(a, value))]
        if len(exact) == 1:
            return self.value(exact[0], value, key)
        for option in exact or options:
            try:
                return self.value(option, value, key)
            except VLSegError:
                continue
        raise self.wrong(key, value, hint)

    def scalar(self, hint: Any, value: Any, key: str) -> Any:
        if hint is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            if isinstance(value, str) and _NUMBER.fullmatch(value):
                return float(value)
        elif hint is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, str) and _NUMBER.fullmatch(value) and float(value).is_integer():
                return int(float(value))
        elif hint is Path:
            if isinstance(value, str | Path):
                return Path(value)
        elif hint in (bool, str):
            if type(value) is hint:
                return value
        else:
            raise TypeError(f"{key}: vlseg.config does not know how to read the type {type_name(hint)}")
        raise self.wrong(key, value, hint)


def _unknown(prefix: str, name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(names)}"
    return f"unknown key {prefix}{name}; {hint}"


def _apply(cls: type, tree: dict[str, Any], override: str, places: dict[str, str]) -> None:
    """Writes one ``a.b=c`` into the tree; where the file is silent, on top of a copy of the default."""
    place = f"override {override!r}"
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise VLSegError(f"{place} is not of the form a.b=value")
    value = _parse(text, place)
    kind: Any = cls
    for name in names:
        kind = _inner_dataclass(kind, name)
    if isinstance(value, str) and (main := _main_field(kind)):
        names.append(main)  # model=NAME leaves alone what else is said of the model
    node: Any = tree
    kind = cls
    for depth, name in enumerate(names):
        if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            at: Any = int(name)
        elif isinstance(node, dict):
            at = name
        else:
            raise VLSegError(f"{place}: {'.'.join(names[:depth])} is {_kind(node)} without a place {name!r}")
        if depth == len(names) - 1:
            node[at] = value
            break
        inner = _inner_dataclass(kind, name)
        if isinstance(node, dict) and node.get(at) is None:
            default = _default_of(kind, name)
            node[at] = {} if default is None else _plain(default)
        elif isinstance(node[at], str) and (main := _main_field(inner)):
            node[at] = {main: node[at]}
        node, kind = node[at], inner
    places[".".join(names)] = place


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _default_of(cls: Any, name: str) -> Any:
    found = [f for f in dataclasses.fields(cls) if f.name == name] if cls else []
    default = _default(found[0]) if found else None
    return None if default is dataclasses.MISSING else default


def _main_field(cls: Any) -> str | None:
    """The field that stands for the whole dataclass, where one does."""
    names = [f.name for f in dataclasses.fields(cls) if f.metadata.get("main")] if cls else []
    return names[0] if names else None


def _inner_dataclass(cls: Any, name: str) -> Any:
    hint = typing.get_type_hints(cls).get(name) if cls else None
    return next((a for a in (hint, *typing.get_args(hint)) if _is_dataclass_type(a)), None)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader underneath
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise VLSegError(f"{source}:{where} {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise VLSegError(f"{source}: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} is written twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that never writes anchors: a resolved config reads without cross-references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _is_dataclass_type(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _holds(hint: Any, value: Any) -> bool:
    """Whether the annotation, at its outermost, is the kind of ``value``."""
    if _is_dataclass_type(hint):
        return isinstance(value, Mapping)
    kind = typing.get_origin(hint) or hint
    if kind is Literal:
        return any(type(a) is type(value) and a == value for a in typing.get_args(hint))
    return kind is type(value) or (kind is tuple and isinstance(value, list))


def _show(value: Any) -> str:
    # Booleans and null the way the user writes them in YAML.
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(_plain(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(value: Any) -> str:
    names = {bool: "a bool", str: "text", int: "an int", float: "a float", type(None): "null"}
    if isinstance(value, Mapping):
        return "a mapping"
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else type(value).__name__)
