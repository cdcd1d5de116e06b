"""Scenes a second on one core, expressions included, as training streams them.

python benchmarks/worlds.py [--seconds 10] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from timing import machine


def rate(make: Callable[[int], Any], seconds: float, warm: int = 400) -> float:
    """Calls of make(0), make(1), … a second of CPU time, after `warm` calls that fill caches of backgrounds."""
    for index in range(warm):
        make(index)
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        make(warm + count)
        count += 1
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU seconds for each row")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    from vlseg.worlds.mosaic import mosaic
    from vlseg.worlds.sprites import SpriteWorld

    world = SpriteWorld(styles="train")
    rows = {
        "sprites, 128 px, 8 queries": lambda i: world.scene(1, i, (128, 128), 8),
        "sprites, 128 px, 12 queries": lambda i: world.scene(1, i, (128, 128), 12),
        "sprites, 256 px, 8 queries": lambda i: world.scene(1, i, (256, 256), 8),
        "mosaic, 128 px": lambda i: mosaic(1, i, (128, 128)),
    }
    result = {"machine": machine(), "per_core_s": {n: round(rate(m, args.seconds), 1) for n, m in rows.items()}}
    if args.json:
        print(json.dumps(result))
        return
    print("  ".join(f"{k}={v}" for k, v in result["machine"].items()))
    for name, value in result["per_core_s"].items():
        print(f"{name:30s}{value:8.0f} /s")


if __name__ == "__main__":
    main()
