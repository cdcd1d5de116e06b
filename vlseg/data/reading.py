"""Annotation files read safely and fast: JSON, and pickles that hold nothing but plain data.

JSON is read with msgspec, for its `Raw`: a value that is found and checked as JSON but not made into Python objects.
Coordinates are nine tenths of an annotation file, so leaving them as text until they are needed takes a fifth of the
time and memory of parsing it all.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, TypeVar

import msgspec

from vlseg.types import VLSegError

T = TypeVar("T")
# What msgspec raises for bytes that are no JSON, or JSON of other types than it is asked for.
JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """No cyclic garbage collection inside: millions of small lists and dicts load about three times as fast."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises VLSegError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise VLSegError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path: Path, fallback_encoding: str | None = None) -> Any:
    """A JSON file. NaN and Infinity, which Python writes and JSON forbids, become None; a byte-order mark is skipped.

    fallback_encoding: what text that is no UTF-8 is taken for. Raises VLSegError for what is no JSON.
    """
    return parse_json(read_bytes(path), str(path), fallback_encoding)


def parse_json(raw: bytes, where: str, fallback_encoding: str | None = None) -> Any:
    """JSON text as `read_json` reads it; where: file and record, for errors."""
    with paused_gc():
        try:
            return msgspec.json.decode(raw)
        except JSON_ERRORS:
            return msgspec.json.decode(_mended(raw, where, fallback_encoding))


def decode_json(raw: bytes, decoder: msgspec.json.Decoder[T], where: str) -> T:
    """JSON text by a typed decoder. Raises VLSegError for what is no JSON, and for other types than it asks for."""
    if not raw.isascii():
        _utf8(raw, where)  # msgspec does not look at text that it leaves raw
    with paused_gc():
        try:
            try:
                return decoder.decode(raw)
            except msgspec.ValidationError:
                raise
            except JSON_ERRORS:
                return decoder.decode(_mended(raw, where, None))
        except msgspec.ValidationError as error:
            raise VLSegError(f"{where}: {reason(error)}") from error


def _mended(raw: bytes, where: str, fallback_encoding: str | None) -> bytes:
    """Strict JSON of what Python's own parser takes, which is more and says better what is wrong. Raises VLSegError."""
    text = _utf8(raw, where, fallback_encoding)
    try:
        return msgspec.json.encode(json.loads(text))
    except (ValueError, OverflowError, RecursionError) as error:
        what = "it is empty" if not text.strip() else f"{error}; is it cut off?"
        raise VLSegError(f"{where}: not JSON ({what})") from error


def _utf8(raw: bytes, where: str, fallback_encoding: str | None = None) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback_encoding is None:
            raise VLSegError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
        return raw.decode(fallback_encoding, "replace")


def reason(error: Exception) -> str:
    """One of `JSON_ERRORS` in a few words: "Object missing required field 'id'"."""
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error).replace("`", "'")


class _PlainUnpickler(pickle.Unpickler):
    """Lists, dicts, tuples, text, numbers, booleans, None: whatever would import or call a thing is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object kept elsewhere")


def read_plain_pickle(path: Path) -> Any:
    """A pickle of plain data, Python 2's included (its byte strings become text as Latin-1); nothing in it is run.

    Raises VLSegError for a pickle that holds anything else, and for what is no pickle.
    """
    raw = read_bytes(path)
    try:
        with paused_gc():
            return _PlainUnpickler(io.BytesIO(raw), encoding="latin1").load()
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "asks for" in str(error):
            raise VLSegError(f"{path}: refused: {error}; annotations are lists, dicts, text and numbers") from error
        # A broken stream makes the unpickler stumble in a dozen ways (EOFError, ValueError, IndexError, ...).
        what = " ".join(str(error).split())[:80] or type(error).__name__
        raise VLSegError(f"{path}: not a pickle that can be read ({what}); is the file cut off?") from error


def whole(value: Any) -> TypeGuard[int]:
    """Whether a value is an integer (True and False are none)."""
    return type(value) is int


def finite(value: Any) -> bool:
    """Whether a value is a number that is neither NaN nor infinite."""
    return type(value) in (int, float) and math.isfinite(value)


def brief(value: Any, width: int = 40) -> str:
    """A value for a message, cut to `width` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."
