"""What the refiner is trained on: images with a coarse and a true mask, from the sprite world and from roll-outs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.data.dataset import Dataset
from vlseg.data.files import write_whole
from vlseg.data.images import open_image
from vlseg.masks import rle as codec
from vlseg.models.refiner import RefinerConfig
from vlseg.models.refiner_crop import Window, cut_image, cut_mask
from vlseg.systems.base import PathSystem, System
from vlseg.training.refine_corruptions import KINDS, corrupt
from vlseg.training.reinforce_rollouts import RollOut
from vlseg.types import RLE, VLSegError
from vlseg.worlds.draw import Draw
from vlseg.worlds.render import SIZES
from vlseg.worlds.scene import Scene
from vlseg.worlds.sprites import SpriteWorld

LEAST = 16  # pixels of the longer side; smaller objects are left out
UNION = 0.12  # share of truths that are all objects of a kind together
MOST_A_SCENE = 4
USELESS = 0.2  # a roll-out below this IoU is about another object, and cannot be mended


@dataclass(slots=True)
class Example:
    """image: RGB; coarse, truth: masks of its size with at least one pixel; kind: how `coarse` came about."""

    image: Image.Image
    coarse: RLE
    truth: RLE
    kind: str


def scene_examples(
    seed: int, first: int, count: int, kinds: Sequence[str] | None = None, size: tuple[int, int] | None = None
) -> list[Example]:
    """`count` objects of scenes `first`, `first` + 1, ... with coarse masks; the same arguments give the same examples.

    kinds: the corruptions that are drawn from, all alike; None: those of `KINDS` by their shares. size: (H, W) of the
    scenes; None: the mixture of `vlseg data render`. No more than `count` scenes are looked at as a rule.
    """
    random = np.random.default_rng((seed, first, 5))
    pictures: list[Image.Image] = []
    truths: list[np.ndarray] = []
    around: list[list[np.ndarray]] = []
    while len(truths) < count:
        scene = SpriteWorld().scene(seed, first, size or Draw(seed, first, 7).choice(SIZES), queries=0)
        first += 1
        mine = [truth for truth in _truths(scene, random) if _large(truth)]
        pictures += [Image.fromarray(scene.image)] * len(mine)
        truths += mine
        around += [_neighbours(scene, truth) for truth in mine]
    truths = truths[:count]
    names = list(KINDS if kinds is None else kinds)
    shares = np.array([KINDS[name] if kinds is None else 1.0 for name in names])
    drawn = random.choice(names, size=count, p=shares / shares.sum()).tolist()
    wrong = corrupt(truths, around[:count], drawn, random)
    return [
        Example(picture, codec.encode(coarse), codec.encode(truth), kind)
        for picture, coarse, truth, kind in zip(pictures, wrong, truths, drawn, strict=False)
    ]


def _truths(scene: Scene, random: np.random.Generator) -> Iterator[np.ndarray]:
    order = random.permutation(len(scene.objects))[:MOST_A_SCENE]
    for number in order.tolist():
        members = [number]
        if random.random() < UNION:
            noun = scene.objects[number].noun
            members = [i for i, other in enumerate(scene.objects) if other.noun == noun]
        yield np.isin(scene.ids, np.array(members) + 1)


def _large(mask: np.ndarray) -> bool:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return bool(len(rows)) and max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 >= LEAST


def _neighbours(scene: Scene, truth: np.ndarray) -> list[np.ndarray]:
    """Other objects whose boxes reach into that of the truth, grown by a fifth on each side."""
    x, y, width, height = codec.bbox(codec.encode(truth))
    grow = 0.2 * max(width, height)
    found = []
    for number, other in enumerate(scene.objects, 1):
        x0, y0, x1, y1 = other.box
        near = x0 < x + width + grow and x1 > x - grow and y0 < y + height + grow and y1 > y - grow
        if near and not truth[scene.ids == number].any():
            found.append(scene.ids == number)
    return found


def rollouts(
    system: System, dataset: Dataset, mode: str = "mask", temperature: float = 0.0, seed: int = 0
) -> Iterator[Example]:
    """A system's own masks (mode "mask" or "path") of the labelled queries of a data set, with their truth.

    Every query with a target is answered, whatever its presence score; answers that fail, and those of less than
    `USELESS` IoU, are left out. temperature: above 0 paths are drawn at it, the same ones for the same seed. Raises
    VLSegError for a temperature below 0, and for one with a system or mode that draws nothing.
    """
    if temperature < 0:
        raise VLSegError(f"temperature={temperature}: must be at least 0")
    if temperature and (mode != "path" or not isinstance(system, PathSystem)):
        raise VLSegError(f"temperature={temperature}: only paths are drawn; use mode=path, or temperature=0")
    extra: dict[str, Any] = {} if mode == "mask" else {"mode": mode}
    kind = f"{system.name}, {mode}" + (f" drawn at {temperature:g}" if temperature else "")
    for index in range(len(dataset)):
        sample = dataset[index]
        queries = [query for query in sample.queries if query.masks]
        if not queries:
            continue
        image, _ = open_image(sample.image)
        texts = [query.text for query in queries]
        if temperature:
            assert isinstance(system, PathSystem)
            own = int(np.random.default_rng((seed, index)).integers(2**60))
            parts = system.stream(image, texts, presence_threshold=0.0, temperature=temperature, seed=own)
            answers = [part.answer for part in sorted(parts, key=lambda part: part.index) if part.done]
        else:
            answers = system.segment_batch([image], [texts], presence_threshold=0.0, **extra)[0]
        for query, answer in zip(queries, answers, strict=True):
            truth = codec.merge(query.masks or [])
            coarse = codec.union([segment.rle for segment in answer.segments], answer.size)
            if codec.iou([coarse], [truth])[0, 0] >= USELESS:
                yield Example(image, coarse, truth, kind)


def drawn_examples(drawn: Iterable[RollOut], kind: str) -> Iterator[Example]:
    """Examples of what `reinforce_rollouts.roll_outs` gives; those of less than `USELESS` IoU are left out."""
    for one in drawn:
        coarse, truth = codec.encode(one.coarse), codec.encode(one.truth)
        if codec.iou([coarse], [truth])[0, 0] >= USELESS:
            yield Example(Image.fromarray(one.image), coarse, truth, kind)


def save_examples(examples: Iterable[Example], folder: Path) -> int:
    """Write examples as pictures and `examples.jsonl`, last and whole; returns how many. Raises VLSegError."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    names: dict[int, str] = {}
    kept: list[Image.Image] = []  # an id is that of one object only as long as the object lives
    for example in examples:
        name = names.get(id(example.image))
        if name is None:
            name = names[id(example.image)] = f"{len(names):05d}.png"
            kept.append(example.image)
            example.image.save(folder / name, compress_level=4)
        lines.append(
            json.dumps({"image": name, "coarse": example.coarse, "truth": example.truth, "kind": example.kind})
        )
    write_whole(folder / "examples.jsonl", "".join(line + "\n" for line in lines))
    return len(lines)


def load_examples(folder: Path) -> list[Example]:
    """What `save_examples` wrote. Raises VLSegError where it is not there or not whole."""
    file, pictures, found = folder / "examples.jsonl", {}, []
    where = str(file)
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{file}, line {number}"
            entry = json.loads(line)
            if entry["image"] not in pictures:
                pictures[entry["image"]], _ = open_image(folder / entry["image"])
            coarse, truth = codec.validate(entry["coarse"]), codec.validate(entry["truth"])
            found.append(Example(pictures[entry["image"]], coarse, truth, entry["kind"]))
    except OSError as error:
        raise VLSegError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise VLSegError(f"{where}: no example of the refiner ({error})") from error
    return found


def crops(
    examples: Sequence[Example], config: RefinerConfig, flips: np.random.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Examples as tensors: pixels (B, 3, S, S), coarse and true masks (B, S/2, S/2) in 0..1.

    flips: mirrors half of them, from left to right.
    """
    cells = config.size // 2
    rows = []
    for example in examples:
        window = Window.around(codec.bbox(example.coarse), config.margin)
        masks = (cut_mask(codec.decode(rle), window, cells) for rle in (example.coarse, example.truth))
        row = (cut_image(example.image, window, config), *masks)
        mirrored = flips is not None and flips.random() < 0.5
        rows.append(tuple(part.flip(-1) for part in row) if mirrored else row)
    pixels, coarse, truth = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return pixels, coarse, truth
