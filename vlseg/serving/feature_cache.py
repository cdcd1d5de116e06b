"""Image features kept for images that come again, found by the digest of their file."""

from __future__ import annotations

import threading
from collections import OrderedDict

from vlseg.systems.base import EncodedImage


class FeatureCache:
    """The least recently used go first once their sum exceeds `limit` bytes; 0 keeps nothing. Thread-safe.

    Whoever got an entry holds it: that it is dropped meanwhile harms nobody.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._entries: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> EncodedImage | None:
        """The features of that image, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, entry: EncodedImage) -> None:
        """Keep an entry; one that is larger than the limit is not kept."""
        if entry.bytes > self.limit:
            return
        with self._lock:
            old = self._entries.pop(key, None)
            self.bytes += entry.bytes - (old.bytes if old else 0)
            self._entries[key] = entry
            while self.bytes > self.limit:
                self.bytes -= self._entries.popitem(last=False)[1].bytes

    def __len__(self) -> int:
        return len(self._entries)
