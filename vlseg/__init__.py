"""vlseg: words in, masks out. `from vlseg import Segmenter`; nothing heavy is imported before it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlseg.version import __version__

if TYPE_CHECKING:
    from vlseg.client import Client
    from vlseg.segmenter import Segmenter
    from vlseg.types import RLE, Answer, Query, Result, Sample, Segment, VLSegError

__all__ = ["RLE", "Answer", "Client", "Query", "Result", "Sample", "Segment", "Segmenter", "VLSegError", "__version__"]

_HOMES = {name: "vlseg.types" for name in ("RLE", "Answer", "Query", "Result", "Sample", "Segment", "VLSegError")}
_HOMES["Segmenter"] = "vlseg.segmenter"
_HOMES["Client"] = "vlseg.client"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vlseg' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
