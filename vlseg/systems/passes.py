"""Which queries of which images go through a model together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlseg.models.processing import VLSegProcessor
from vlseg.types import VLSegError

# A pass costs memory in the square of its tokens; more queries than this take further passes over the same encoding.
QUERIES_A_PASS = 64
TOKENS_A_PASS = 2048

Chunk = list[tuple[int, list[int]]]  # number of each query in its row, and its token ids


def plan(
    texts: Sequence[Sequence[str]], processor: VLSegProcessor
) -> tuple[list[tuple[int, int, str]], list[list[Chunk]]]:
    """(image, query, reason) of the queries that cannot be asked, and the passes: for each a chunk of every image."""
    unreadable: list[tuple[int, int, str]] = []
    rows: list[list[Chunk]] = []
    for b, row in enumerate(texts):
        readable: Chunk = []
        for k, text in enumerate(row):
            try:
                readable.append((k, processor.query_ids(text)))
            except VLSegError as error:
                unreadable.append((b, k, str(error)))
        rows.append(list(_chunks(readable)))
    rounds = max(map(len, rows), default=0)
    return unreadable, [[row[number] if number < len(row) else [] for row in rows] for number in range(rounds)]


def _chunks(queries: Chunk) -> Iterator[Chunk]:
    chunk: Chunk = []
    tokens = 0
    for query in queries:
        if chunk and (len(chunk) == QUERIES_A_PASS or tokens + len(query[1]) > TOKENS_A_PASS):
            yield chunk
            chunk, tokens = [], 0
        chunk.append(query)
        tokens += len(query[1])
    if chunk:
        yield chunk
