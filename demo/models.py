"""The models of the demo: loaded when first chosen, the last few kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from PIL import Image

from vlseg.segmenter import Segmenter
from vlseg.systems.registry import EMBEDDED, KNOWN, resolve
from vlseg.types import VLSegError

KEPT = 2  # what a comparison needs


class Models:
    """Segmenters by the names that people choose.

    names: the choices of the page, the default first. device, dtype: as for `Segmenter`.
    typed: whether other names, folders of this machine and org/name may be typed, too.
    """

    def __init__(
        self, names: Sequence[str], device: str | None = None, dtype: str | None = None, typed: bool = False
    ) -> None:
        self.names, self.typed = list(dict.fromkeys(names)), typed
        self._device, self._dtype = device, dtype
        self._loaded: dict[str, Segmenter] = {}
        self._lock = threading.Lock()

    def get(self, name: str | None) -> tuple[Segmenter, float]:
        """A segmenter that has run once, and the seconds that loading took: 0 where it was there already.

        Raises VLSegError for a model that is not to be had, or that this page does not offer.
        """
        name = (name or "").strip() or self.names[0]
        if name not in self.names and not self.typed:
            raise VLSegError(f"There is no model “{name}” on this page; choose {' or '.join(self.names)}.")
        with self._lock:
            start = time.perf_counter()
            fresh = name not in self._loaded
            segmenter = self._load(name) if fresh else self._loaded.pop(name)
            self._loaded[name] = segmenter  # now the last used
            while len(self._loaded) > KEPT:
                del self._loaded[next(iter(self._loaded))]
            return segmenter, time.perf_counter() - start if fresh else 0.0

    def _load(self, name: str) -> Segmenter:
        try:
            segmenter = Segmenter(name, self._device, self._dtype)
        except VLSegError as error:
            reason = str(error).removeprefix(f"--model {name}: ")
            raise VLSegError(f"The model “{name}” cannot be used: {reason}") from error
        segmenter(Image.new("RGB", (64, 64)), "a thing")  # the first call of a process sets up what the others use
        return segmenter


def choices(given: Sequence[str] = ()) -> list[str]:
    """Names for the page: the given models first, else the embedded one, then the known ones that can be resolved.

    Raises VLSegError for a given one that cannot be. Nothing is loaded.
    """
    for name in given:
        resolve(name)
    return list(dict.fromkeys([*(given or [EMBEDDED]), *(known.name for known in KNOWN if _there(known.name))]))


def _there(name: str) -> bool:
    try:
        resolve(name)
    except VLSegError:
        return False
    return True
