"""Write scenes of a world to disk as pictures and one JSONL file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from vlseg.types import VLSegError
from vlseg.worlds.draw import Draw
from vlseg.worlds.geometry.diagrams import Diagram, GeometryWorld
from vlseg.worlds.scene import Scene
from vlseg.worlds.sprites import SpriteWorld

WORLDS = ("sprites", "geometry")
# Sizes (H, W) that a data set cycles through at random where none is asked for.
SIZES = ((256, 256), (256, 256), (240, 320), (320, 240), (192, 256), (256, 192), (224, 336), (384, 384), (128, 128))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def line(scene: Scene | Diagram, image: str) -> str:
    """The scene as one line of JSONL; ``image`` is the picture's path relative to the file."""
    queries = [
        {"text": q.text, "masks": q.masks, "distractors": q.distractors, "kind": q.kind}
        for q in scene.to_sample(image).queries
    ]
    return json.dumps({"image": image, "queries": queries}, ensure_ascii=False)


def _save(picture: Image.Image, options: dict[str, Any], path: Path) -> None:
    picture.save(path, **options)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def render_dataset(
    world_name: str,
    out: Path,
    n: int,
    seed: int,
    size: tuple[int, int] | None = None,
    queries: int = 8,
    styles: str = "train",
    image_format: str = "png",
) -> Path:
    """Write ``n`` scenes to ``out/images`` and ``out/data.jsonl``; returns the path of the JSONL file.

    size: (H, W) of every picture, or None for a mixture of sizes and aspect ratios. image_format: "png" or "jpg".
    The JSONL file is moved into place last, so that it never names a picture that is not there.
    Raises VLSegError for an unknown world, style or format, for n < 1, and where ``out`` cannot be written.
    """
    if world_name not in WORLDS:
        raise VLSegError(f"no world {world_name!r}; there are {', '.join(WORLDS)}")
    if image_format not in ("png", "jpg"):
        raise VLSegError(f"image_format {image_format!r} is neither png nor jpg")
    if n < 1 or queries < 1:
        raise VLSegError(f"n and queries must be at least 1, got n={n}, queries={queries}")
    if seed < 0:
        raise VLSegError(f"seed must not be negative, got {seed}")
    if world_name == "geometry" and styles != "train":
        raise VLSegError(f"geometry has no styles; {styles!r} is one of the sprites")
    world: SpriteWorld | GeometryWorld = SpriteWorld(styles) if world_name == "sprites" else GeometryWorld()
    out = Path(out)
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        lines = []
        for index in range(n):
            shape = size or Draw(seed, index, 7).choice(SIZES)
            scene = world.scene(seed, index, shape, queries)
            name = f"images/{index:06d}.{image_format}"
            options = {"quality": 95} if image_format == "jpg" else {"compress_level": 4}
            picture = Image.fromarray(scene.image)
            write_atomically(out / name, partial(_save, picture, options))
            lines.append(line(scene, name))
        write_atomically(out / "data.jsonl", partial(_write, "\n".join(lines) + "\n"))
    except OSError as error:
        raise VLSegError(f"cannot write to {out}: {error}") from error
    return out / "data.jsonl"
