"""docs/fine-tuning.md: its five commands, run on a tiny case; its links, keys and recipes, which must exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vlseg.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
# What makes a run of the shipped recipe small enough for a test; the words of the page stay as they are.
SMALL = ["steps=4", "data.images=2", "data.queries=3", "data.workers=0", "model.area=4096", "eval_every=0", "save_every=2",  # noqa: E501
         "grid_every=4", "trackers=[]", "optim.warmup=1", "adapter.rank=2", "threads=1"]  # fmt: skip


def commands(mark):
    """The lines of the block behind a mark."""
    found = re.search(rf"<!-- {mark}:[^\n]*-->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    return found[1].splitlines()


def write_blocks(folder, name, count, seed):
    """A JSONL of pictures with a bright block each, and words for something that is not there."""
    import json

    import numpy as np
    from PIL import Image

    from vlseg.masks.rle import encode

    random, lines = np.random.default_rng(seed), []
    for number in range(count):
        pixels = random.integers(90, 150, (64, 64, 3)).astype(np.uint8)
        mask = np.zeros((64, 64), bool)
        top, left = random.integers(0, 32, 2)
        mask[top : top + 30, left : left + 30] = True
        pixels[mask] = (220, 40, 40)
        Image.fromarray(pixels).save(folder / f"{name}-{number}.png")
        queries = [{"text": "the red mug", "masks": [encode(mask)]}, {"text": "the zebra", "masks": []}]
        lines.append(json.dumps({"image": f"{name}-{number}.png", "id": f"{name}-{number}", "queries": queries}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def test_the_five_commands_lead_to_a_model(tmp_path, monkeypatch, capsys):
    from vlseg.segmenter import Segmenter

    monkeypatch.chdir(tmp_path)
    write_blocks(tmp_path, "my", 6, 0)
    write_blocks(tmp_path, "val", 3, 1)
    lines = commands("five commands")
    assert [line.split()[1] for line in lines] == ["data", "train", "train", "eval", "export"]
    told = []
    for line in lines:
        words = shlex.split(line)[1:]
        words = ["model=vlseg-mini" if word.startswith("model=") else word for word in words]
        assert main([*words, *(SMALL if words[0] == "train" else [])]) == 0, line
        told.append(capsys.readouterr().out)
    assert re.search(r"parameters: [\d,]+ trained of", told[1])
    assert {"config.yaml", "checkpoints", "metrics.jsonl", "grids", "final"} <= {
        p.name for p in (tmp_path / "runs/lora").iterdir()
    }
    assert (tmp_path / "report" / "report.json").exists()
    result = Segmenter("my-model", "cpu")("my-0.png", ["the red mug", "the zebra"], presence_threshold=0.0)
    assert [answer.status for answer in result] != ["failed", "failed"]
    assert result[0].mask.shape == (64, 64)


def test_what_the_page_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    recipes = {file.stem for file in (ROOT / "configs" / "train").glob("*.yaml")}
    told = set(re.findall(r"^\| `([\w-]+)` \|", PAGE.split("## Recipes")[1].split("###")[0], re.MULTILINE))
    assert told == recipes


def test_settings_on_the_page_exist():
    """Every `a.b` or `a.b=c` of the text is a key of a run."""
    import dataclasses

    from vlseg.training.config import TrainConfig

    sections = {field.name: field for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig()
    found = set(re.findall(r"\b((?:model|data|optim|adapter|qat)\.\w+)(?:=|`)", PAGE)) - {"qat.json"}
    assert len(found) > 10
    for key in found:
        section, name = key.split(".")
        assert section in sections
        assert hasattr(getattr(config, section), name), key


@pytest.mark.parametrize("name", ["slurm.sh", "torchrun.sh"])
def test_launch_scripts_are_shell_and_name_real_recipes(name):
    script = ROOT / "examples" / name
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    text = script.read_text()
    assert "-m vlseg.cli train" in text
    for launch in re.findall(r"(?:--launch |LAUNCH:-)(\w+)", text):
        assert (ROOT / "configs" / "accelerate" / f"{launch}.yaml").exists()


def test_the_python_example_runs(tmp_path):
    call = [sys.executable, str(ROOT / "examples" / "segment.py"), "--overlay", str(tmp_path / "overlay.png")]
    done = subprocess.run(call, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("all the peacocks: found, score ")
    assert (tmp_path / "overlay.png").stat().st_size > 10_000
