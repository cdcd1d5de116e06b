"""Small data sets in the exact formats of the originals."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
NAMES = {1: "person", 2: "dog", 3: "cup"}


def box(x: float, y: float, w: float, h: float) -> list[float]:
    """A rectangle as a flat COCO polygon."""
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation(id: int, image: int, category: int, *polygons: list[float], **extra: Any) -> dict[str, Any]:
    first = polygons[0] if polygons else [0.0] * 8
    return {"segmentation": list(polygons), "area": 1.0, "iscrowd": 0, "image_id": image,
            "bbox": [first[0], first[1], 8.0, 8.0], "category_id": category, "id": id, **extra}  # fmt: skip


def instances(images: int = 3) -> dict[str, Any]:
    """Per image k: persons 10k+1, 10k+2, 10k+3, dog 10k+4, and a crowd of persons 10k+5 (an uncompressed RLE)."""
    entries, pictures = [], []
    for k in range(1, images + 1):
        pictures.append({"license": 1, "file_name": f"COCO_train2014_{k:012d}.jpg", "height": HEIGHT, "width": WIDTH,
                         "coco_url": "", "date_captured": "2013-11-17 05:37:38", "id": k})  # fmt: skip
        entries += [
            annotation(10 * k + 1, k, 1, box(2, 2, 16, 20)),
            annotation(10 * k + 2, k, 1, box(24, 4, 12, 30), box(30, 20, 12, 20)),
            annotation(10 * k + 3, k, 1, box(46, 6, 14, 24.5)),
            annotation(10 * k + 4, k, 2, box(4.5, 30, 15, 12)),
            annotation(10 * k + 5, k, 1, iscrowd=1),
        ]
        runs = [WIDTH * HEIGHT - 300, 200, 100]
        entries[-1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs}
    categories = [{"supercategory": "thing", "id": id, "name": name} for id, name in NAMES.items()]
    return {"info": {}, "images": pictures, "licenses": [], "annotations": entries, "categories": categories}


def ref(id: int, image: int, ann: Any, split: str, *sentences: str, category: Any = 1, sent: int = 0) -> dict[str, Any]:
    said = [
        {"tokens": text.lower().split(), "raw": text, "sent_id": sent + 100 * id + k, "sent": text.lower()}
        for k, text in enumerate(sentences)
    ]
    return {"sent_ids": [s["sent_id"] for s in said], "file_name": f"COCO_train2014_{image:012d}_{id}.jpg",
            "ann_id": ann, "ref_id": id, "image_id": image, "split": split, "sentences": said,
            "category_id": category}  # fmt: skip


def refs() -> list[dict[str, Any]]:
    return [
        ref(1, 1, 11, "val", "The Left person", "person in red"),
        ref(2, 2, 22, "train", "middle man"),
        ref(3, 1, 14, "val", "the dog", category=2),
        ref(4, 3, 33, "testA", "right person", "guy at right", "man"),
        ref(5, 1, 12, "val", "middle one"),
    ]


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 wrote it: text as byte strings (opcode U), long integers as LONG1."""

    def dump(item: Any) -> bytes:
        if item is None:
            return b"N"
        if isinstance(item, bool):
            return b"\x88" if item else b"\x89"
        if isinstance(item, int):
            if -(2**31) <= item < 2**31:
                return b"J" + struct.pack("<i", item)
            data = item.to_bytes(9, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        if isinstance(item, float):
            return b"G" + struct.pack(">d", item)
        if isinstance(item, str):
            data = item.encode("latin-1")
            return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data
        if isinstance(item, list):
            return b"](" + b"".join(map(dump, item)) + b"e"
        if isinstance(item, dict):
            return b"}(" + b"".join(dump(k) + dump(v) for k, v in item.items()) + b"u"
        raise TypeError(item)

    return b"\x80\x02" + dump(value) + b"."


def python2_pickle_0(value: Any) -> bytes:
    """Protocol 0 as Python 2 wrote it: lines of text."""

    def dump(item: Any) -> bytes:
        if item is None:
            return b"N"
        if isinstance(item, int):
            return b"I%d\n" % item
        if isinstance(item, float):
            return b"F%r\n" % item
        if isinstance(item, str):
            return b"S" + repr(item.encode("latin-1"))[1:].encode("ascii") + b"\n"
        if isinstance(item, list):
            return b"(l" + b"".join(dump(v) + b"a" for v in item)
        if isinstance(item, dict):
            return b"(d" + b"".join(dump(k) + dump(v) + b"s" for k, v in item.items())
        raise TypeError(item)

    return dump(value) + b"."


def picture(path: Path, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


def write_refcoco(root: Path, folder: str = "refcoco", file: str = "refs(unc).p", content: Any = None) -> Path:
    """root/FOLDER/{refs(unc).p, instances.json} and root/train2014; returns root."""
    target = root / folder
    target.mkdir(parents=True, exist_ok=True)
    content = refs() if content is None else content
    data = json.dumps(content).encode() if file.endswith(".json") else python2_pickle(content)
    (target / file).write_bytes(data)
    (target / "instances.json").write_text(json.dumps(instances()))
    for k in range(1, 4):
        picture(root / "train2014" / f"COCO_train2014_{k:012d}.jpg", seed=k)
    return root
