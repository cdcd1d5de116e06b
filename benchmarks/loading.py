"""Opening a data set of RefCOCO's size: 50,000 refs, 142,210 sentences, 200,000 annotations, generated.

Against what anyone would write: `orjson.loads` and a restricted unpickler on the same two files, once as Python does it
and once with the garbage collector off. Every measurement is a process of its own; files are in the page cache. Ratios
are of CPU seconds, which other work on the machine disturbs least.

python benchmarks/loading.py [--rounds 5] [--split train] [--folder DIR] [--json]
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from timing import machine, ratio

IMAGES, ANNOTATIONS = 19_994, 200_000
WORDS = ("man", "woman", "dog", "left", "right", "red", "blue", "shirt", "sitting", "the", "in", "of", "on", "table")
VARIANTS = ("plain", "plain, gc off", "first opening", "second opening", "content hash")


def generate(folder: Path, seed: int = 0) -> None:
    """Write folder/refcoco/{refs(unc).p, instances.json} with the official split sizes; no pictures."""
    from vlseg.data.official import REFS, SENTENCES

    rng = np.random.default_rng(seed)
    target = folder / "refcoco"
    target.mkdir(parents=True, exist_ok=True)
    images = [
        {"license": 3, "file_name": f"COCO_train2014_{i:012d}.jpg", "coco_url": f"http://mscoco.org/images/{i}",
         "height": 480, "width": 640, "date_captured": "2013-11-17 05:37:38",
         "flickr_url": f"http://farm1.staticflickr.com/73/{i}_3ecb570b2d_z.jpg", "id": i}
        for i in range(1, IMAGES + 1)
    ]  # fmt: skip
    # Three categories an image, as photographs have many instances of few kinds.
    kinds = rng.integers(1, 91, (IMAGES + 1, 3))
    annotations = []
    for number in range(1, ANNOTATIONS + 1):
        image = (number - 1) % IMAGES + 1
        points, radius = int(rng.integers(8, 52)), rng.uniform(8, 50)
        angles = np.sort(rng.uniform(0, 2 * np.pi, points))
        centre = rng.uniform(50, 430, 2)
        ring = np.round(centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1), 2).ravel().tolist()
        annotations.append(
            {"segmentation": [ring], "area": round(3.14 * radius**2, 4), "iscrowd": 0, "image_id": image,
             "bbox": np.round([*(centre - radius), 2 * radius, 2 * radius], 2).tolist(),
             "category_id": int(kinds[image, number % 3]), "id": number}
        )  # fmt: skip
    categories = [{"supercategory": "thing", "id": i, "name": f"category {i}"} for i in range(1, 91)]
    whole = {"info": {}, "images": images, "licenses": [], "annotations": annotations, "categories": categories}
    (target / "instances.json").write_bytes(msgspec.json.encode(whole))
    refs: list[dict[str, Any]] = []
    sent_id = 0
    for split, size in REFS["refcoco"].items():
        sentences = SENTENCES["refcoco"][split]
        for place in range(size):
            annotation = annotations[len(refs)]
            said = []
            for _ in range(sentences // size + (place < sentences % size)):
                tokens = [WORDS[w] for w in rng.integers(0, len(WORDS), int(rng.integers(2, 7)))]
                text = " ".join(tokens)
                said.append({"tokens": tokens, "raw": text, "sent_id": sent_id, "sent": text})
                sent_id += 1
            refs.append(
                {"sent_ids": [s["sent_id"] for s in said], "ann_id": annotation["id"], "ref_id": len(refs),
                 "file_name": f"COCO_train2014_{annotation['image_id']:012d}_{annotation['id']}.jpg",
                 "image_id": annotation["image_id"], "split": split, "sentences": said,
                 "category_id": annotation["category_id"]}
            )  # fmt: skip
    # Protocol 0 is what Python 2 wrote unless told otherwise, and what the original files are.
    (target / "refs(unc).p").write_bytes(pickle.dumps(refs, 0))


class Plain(pickle.Unpickler):
    """The shortest restricted unpickler."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def measure(variant: str, folder: Path, split: str) -> dict[str, float]:
    """CPU and wall seconds of one variant in this process, and the peak of its memory in MB."""
    from vlseg.data.index import content_hash
    from vlseg.data.registry import open_dataset

    instances, refs = folder / "refcoco" / "instances.json", folder / "refcoco" / "refs(unc).p"
    cache = Path(os.environ["VLSEG_CACHE"])
    if variant.startswith("plain"):
        import orjson

        if variant.endswith("off"):
            gc.disable()

        def run() -> Any:
            whole = orjson.loads(instances.read_bytes())
            return whole, Plain(io.BytesIO(refs.read_bytes()), encoding="latin1").load()

    elif variant == "content hash":

        def run() -> Any:
            return content_hash(instances), content_hash(refs)

    else:
        import vlseg.data.refer  # noqa: F401  # imports are paid once a process, whatever is opened

        for file in cache.glob("*") if variant == "first opening" else ():
            file.unlink()

        def run() -> Any:
            return open_dataset("refcoco", split, folder, pictures=False)

    cpu, wall = time.process_time(), time.perf_counter()
    kept = run()
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    assert len(kept) > 0
    return {**seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--split", default="train")
    parser.add_argument("--folder", type=Path, help="keep the generated files here and use them again")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.variant, args.folder, args.split)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "data"
        if not (folder / "refcoco" / "refs(unc).p").is_file():
            generate(folder)
        cache = Path(scratch) / "cache"
        environment = {**os.environ, "VLSEG_CACHE": str(cache)}
        runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        command = [sys.executable, __file__, "--folder", str(folder), "--split", args.split, "--variant"]
        for number in range(args.rounds + 1):
            for variant in VARIANTS:
                done = subprocess.run([*command, variant], env=environment, check=True, capture_output=True, text=True)
                if number:  # the first round fills the page cache
                    runs[variant].append(json.loads(done.stdout))
        size = {"files": _megabytes(folder / "refcoco"), "cached index": _megabytes(cache)}
    cpu = {variant: [run["cpu"] for run in found] for variant, found in runs.items()}
    ratios = {
        f"{ours} / {theirs}": round(ratio(cpu[ours], cpu[theirs]), 3)
        for ours in VARIANTS[2:]
        for theirs in VARIANTS[:2]
    }
    medians = {
        variant: {key: round(statistics.median(run[key] for run in found), 4) for key in found[0]}
        for variant, found in runs.items()
    }
    result = {"machine": machine(), "split": args.split, "megabytes": size, "medians": medians, "ratios": ratios}
    if args.json:
        print(json.dumps(result))
        return
    print("  ".join(f"{key}={value}" for key, value in result["machine"].items()))
    print(f"refcoco {args.split}: " + ", ".join(f"{what} {value:.0f} MB" for what, value in size.items()))
    print(f"{'':16s}{'CPU s':>8s}{'wall s':>8s}{'peak MB':>9s}")
    for variant, found in medians.items():
        print(f"{variant:16s}{found['cpu']:8.3f}{found['wall']:8.3f}{found['peak_mb']:9.0f}")
    for pair, value in ratios.items():
        print(f"{pair:40s}{value:8.3f}")


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


if __name__ == "__main__":
    main()
