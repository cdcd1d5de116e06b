"""`Dataset`: what the evaluator, the trainer and the converter know of a source of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vlseg.types import Sample


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that cannot be used. where: file and record ("instances.json: annotation 17"); what: the reason."""

    where: str
    what: str


@runtime_checkable
class Dataset(Protocol):
    """A sequence of samples in a fixed order; no image is opened before it is needed.

    name, split: as users name them. problems: the records that were left out, each named; never dropped silently.
    fingerprint: SHA-256 (hex) of what the split holds, for reports.
    """

    name: str
    split: str

    @property
    def problems(self) -> list[Problem]:
        """Records that were left out."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of ids, texts and truth of every query, in order."""
        ...

    def __len__(self) -> int:
        """Number of samples (images)."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """The sample of that position; ids of samples and of queries are unique within the data set."""
        ...
