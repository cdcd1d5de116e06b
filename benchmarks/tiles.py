"""A very large image in tiles: memory beyond what is there before the image is opened, time, and the mask's IoU.

    python benchmarks/tiles.py [--size 12000x20000] [--tile 1024] [--model M] [--queries 2] [--json]

The image is drawn (one object over many tiles, dots that only tiles can see) and written to a file first. Without
--model the system is a stand-in that tells by colour, so that the numbers are those of tiling itself. Peak memory is
the kernel's (VmHWM) of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import machine

DOTS = 40


class Reds:
    """A system that finds red pixels, and blue ones where the words say so."""

    name, protocol, modes, presence_threshold = "by colour", "by colour", ("mask",), 0.5

    def segment(self, image: Any, queries: Any, *, presence_threshold: Any = None, mask_threshold: float = 0.5) -> Any:
        """One answer a query."""
        import numpy as np

        from vlseg.systems.base import decide

        pixels = np.asarray(image)
        out = []
        for text in queries:
            channel = 2 if "blue" in text else 0
            mask = (pixels[..., channel] > 128) & (pixels[..., 1] < 100) & (pixels[..., 2 - channel] < 128)
            score = 0.9 if mask.sum() >= 30 else 0.1
            out.append(decide(text, score, 0.5, mask.shape, lambda mask=mask: mask))
        return out

    def segment_batch(self, images: Any, queries: Any, **options: Any) -> Any:
        """Image by image."""
        return [self.segment(image, row, **options) for image, row in zip(images, queries, strict=True)]


def draw(path: Path, size: tuple[int, int]) -> None:
    """A red ellipse over a third of the image, and blue dots of a hundredth of its height."""
    from PIL import Image
    from PIL import ImageDraw as Draw

    height, width = size
    image = Image.new("RGB", (width, height), (60, 90, 70))
    pen = Draw.Draw(image)
    pen.ellipse((width * 0.15, height * 0.1, width * 0.8, height * 0.85), fill=(220, 40, 30))
    for number in range(DOTS):
        x, y = width * (number + 0.5) / DOTS, height * 0.93
        pen.ellipse((x, y, x + height // 400, y + height // 400), fill=(30, 40, 220))
    image.save(path, compress_level=1)


def memory() -> tuple[int, int]:
    """(resident now, resident at most) of this process in bytes; Linux."""
    text = Path("/proc/self/status").read_text()
    now, most = (int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now, most


def measure(path: str, size: tuple[int, int], tile: int, model: str | None, queries: int) -> dict[str, Any]:
    """In a process of its own: segment the file and compare with what was drawn."""
    import numpy as np

    from vlseg import Segmenter
    from vlseg.masks import rle as codec

    segmenter = Segmenter(model or Reds(), max_pixels=10**9, keep_picture=False, tile=tile)
    texts = (["the red ellipse", "the blue dots"] * queries)[:queries]
    segmenter(np.zeros((tile * 2, tile * 2, 3), np.uint8), texts)  # what the model itself needs
    before, _ = memory()
    start, used = time.perf_counter(), time.process_time()
    result = segmenter(path, texts)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    _, most = memory()
    truth = ellipse(size)  # of the first query
    assert 0.05 < codec.area(truth) / (size[0] * size[1]) < 0.95
    first = codec.union([segment.rle for segment in result[0].segments], size)
    return {
        "size": list(size),
        "tile": tile,
        "model": segmenter.name,
        "queries": queries,
        "status": [answer.status for answer in result],
        "outline_points": [segment.path.count(" ") for answer in result for segment in answer.segments],
        "iou_of_first": float(codec.iou([first], [truth])[0, 0]),
        "extra_MiB": round((most - before) / 2**20),
        "image_MiB": round(4 * size[0] * size[1] / 2**20),  # Pillow keeps four bytes a pixel
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def ellipse(size: tuple[int, int]) -> Any:
    """The ellipse that `draw` draws, as an RLE without its pixels."""
    import numpy as np

    from vlseg.masks.raster import raster_rle

    height, width = size
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    x = width * 0.475 + width * 0.325 * np.cos(angle)
    y = height * 0.475 + height * 0.375 * np.sin(angle)
    return raster_rle([np.stack([x, y], axis=1)], size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="12000x20000", help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--model", help="a model of vlseg instead of the stand-in")
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = tuple(int(part) for part in args.size.split("x"))
    if args.measure:
        print(json.dumps(measure(args.measure, (size[0], size[1]), args.tile, args.model, args.queries)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.png"
        draw(path, (size[0], size[1]))
        call = [sys.executable, __file__, *sys.argv[1:], "--measure", str(path)]
        done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    result = {"machine": machine(), **json.loads(done.stdout.splitlines()[-1])}
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:16s}{value}")


if __name__ == "__main__":
    main()
