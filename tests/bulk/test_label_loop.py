"""examples/label_loop.py on a tiny case: two rounds, each labels, trains and scores in earnest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.masks.rle import encode

ROOT = Path(__file__).parents[2]
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}


def draw(folder: Path, count: int, seed: int) -> Path:
    """Pictures with a block of each colour, and their labels."""
    folder.mkdir()
    random, lines = np.random.default_rng(seed), []
    for number in range(count):
        pixels = random.integers(90, 150, (64, 64, 3)).astype(np.uint8)
        queries = [{"text": "the big cat", "masks": []}]
        for place, (colour, rgb) in enumerate(COLOURS.items()):
            mask = np.zeros((64, 64), bool)
            top, left = int(random.integers(0, 32)), int(random.integers(0, 6)) + 21 * place
            mask[top : top + 32, left : left + 15] = True
            pixels[mask] = rgb
            queries.append({"text": f"the {colour} mug", "masks": [encode(mask)]})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "size": [64, 64], "queries": queries})
    file = folder.parent / f"{folder.name}.jsonl"
    for line in lines:
        line["image"] = f"{folder.name}/{line['image']}"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.slow
def test_the_loop_runs_and_keeps_the_better(tiny_folder, tmp_path):
    labelled, val = draw(tmp_path / "mine", 4, 1), draw(tmp_path / "val", 3, 2)
    draw(tmp_path / "photos", 6, 3)
    words = tmp_path / "words.txt"
    words.write_text("the red mug | the big red mug\nthe green mug\nthe blue mug\nthe big cat\n")
    command = [
        sys.executable, str(ROOT / "examples" / "label_loop.py"), "--images", tmp_path / "photos", "--queries", words,
        "--labelled", labelled, "--val", val, "--model", tiny_folder, "--config", "full", "--rounds", "2",
        "--annotate", "2", "--min-confidence", "0.3", "--device", "cpu", "--out", tmp_path / "out",
        "steps=30", "data.images=2", "data.workers=0", "mixed_precision=no", "optim.lr=3e-3", "optim.warmup=2",
        "eval_every=0", "grid_every=0", "save_every=30", "export_dtype=float32", "model.checkpointing=false",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=900, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "out" / "loop.json").read_text())
    rounds = history["rounds"]
    assert [row["round"] for row in rounds] == [0, 1, 2]
    scores = [row["mIoU"] for row in rounds]
    kept = [row for row in rounds[1:] if row["kept"]]
    assert max(scores) == scores[0] if not kept else history["best"] == kept[-1]["model"]
    assert all(row["pseudo-labels"] > 0 for row in rounds[1:])
    for number in (1, 2):
        folder = tmp_path / "out" / f"round-{number}"
        chosen = [json.loads(line)["image"] for line in (folder / "next.jsonl").read_text().splitlines()]
        pseudo = [json.loads(line)["image"] for line in (folder / "pseudo.jsonl").read_text().splitlines()]
        assert len(chosen) == 2
        assert not set(chosen) & set(pseudo)
        assert all(Path(image).is_file() for image in chosen + pseudo)
    # A second start has nothing to do but to read what is there.
    again = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=900, check=False, cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "loop.json").read_text()) == history
