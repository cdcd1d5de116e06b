"""What the target-aware losses and rectified cost aggregation do where a look-alike of the same noun is in the picture.

A reduced sprite world (`target_aware_world.py`), a small model, one start for all: pixel encoder and decoder learn the
things' names on mosaics, then all but the towers learns masks on scenes, without a target-aware loss. From there every
variant of a seed is trained on the same scenes for the same number of steps. Each run takes minutes on one core,
leaves one JSON file, and is not run again; the table pairs variants case by case.

    python benchmarks/target_aware.py --only ours --seed 1     one run (and the start, if it is not there yet)
    python benchmarks/target_aware.py                          all runs that are missing, then the table
    python benchmarks/target_aware.py --table                  the table of what is there, also to docs/target-aware.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from target_aware_report import report, verdict, write_report
from target_aware_world import SIZE, scenes, the_world
from timing import machine
from torch import nn
from torch.nn.utils import clip_grad_norm_

from vlseg.data.files import write_whole
from vlseg.evaluation.scenes import score_scenes
from vlseg.losses.contrast import dense_noun_loss
from vlseg.metrics.referring import summary
from vlseg.models.cpu_speed import prefer_float32_depthwise
from vlseg.models.modeling import VLSegModel
from vlseg.models.presets import build_preset
from vlseg.models.processing import VLSegProcessor
from vlseg.training.batches import collate_scenes
from vlseg.training.config import LossSection, OptimSection
from vlseg.training.objective import loss_sums
from vlseg.training.optimizer import build_optimizer
from vlseg.training.phrases import Phrases, phrases
from vlseg.training.schedule import rate
from vlseg.training.warmup import NounTower, accuracy, cell_nouns, copy_tower
from vlseg.types import VLSegError
from vlseg.worlds.mosaic import mosaic
from vlseg.worlds.scene import Scene
from vlseg.worlds.sprites import SpriteWorld

FORMS: dict[str, dict[str, Any]] = {
    "none": {"target_form": "none"},
    "talent": {"target_form": "talent"},
    "ours": {"target_form": "ours", "target": 0.3, "stray": 1.0},
}
VARIANTS = [f"{form}{fusion}" for fusion in ("", "+rca") for form in FORMS]
SEEDS = (1, 2, 3)

IMAGES = 12  # a step
STEPS = 250
SCENES = 2400  # of a seed; they come again
START = {"seed": 9, "mosaics": 400, "images": 16, "steps": 500}  # mosaics: steps on them; images: of such a step
MOSAIC = (96, 96)
ROWS = 0.3  # standard deviation of the fresh token rows
PULLS = (50, 25)  # every so many steps, from which on, the gradient of each loss is measured
NAMES = OptimSection(lr=2e-3, matrix_lr=2e-2, weight_decay=0.02, warmup=30, schedule="constant-decay", decay=0.3)
OPTIM = OptimSection(lr=2e-3, matrix_lr=1e-2, warmup=30, schedule="constant-decay", decay=0.4, embedding_scale=2.0)
TOWERS = ("pixel_encoder.", "vlm.model.vision_tower.")  # stay as the mosaics left them
HEAD = {"dim": 64, "embed_dim": 32, "noun_dim": 32, "layers": 3, "presence": True}
VAL_SEED, VAL_SCENES = 900_001, 250


def build(seed: int, fusion: str) -> tuple[VLSegModel, VLSegProcessor]:
    """The small model of a seed; memory layout and depthwise kernels as in training on CPUs."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), seed, head={**HEAD, "fusion": fusion})
    model.config.image["area"] = processor.image["area"] = SIZE[0] * SIZE[1]
    # For the choice to be learned within minutes: the word that chooses is the last one, and its state answers; rows of
    # fresh words differ by more than the language model's own bias.
    processor.suffix_ids = []
    nn.init.normal_(model.get_input_embeddings().get_parameter("weight"), std=ROWS)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not name.startswith(TOWERS))
    prefer_float32_depthwise(model)
    nn.Module.to(model, memory_format=torch.channels_last)
    return model, processor


def learn_names(model: VLSegModel, processor: VLSegProcessor) -> None:
    """Pixel encoder, decoder and noun prototypes learn the things' names on mosaics."""
    tower, pool, steps = NounTower(model).requires_grad_(True), the_world().pool, START["mosaics"]
    optimizer = build_optimizer(tower, NAMES)
    for step in range(steps):
        made = [mosaic(START["seed"], 1024 * step + i, MOSAIC, 0.0, pool) for i in range(START["images"])]
        glyphs = torch.full((len(made), max(len(m[2]) for m in made)), -1)
        for row, (_, _, names) in zip(glyphs, made, strict=True):
            row[: len(names)] = torch.from_numpy(names)
        pixels, ids = (torch.stack([torch.tensor(m[n]) for m in made]) for n in (0, 1))
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(step, steps, NAMES)
        nouns, prototypes = tower(processor.normalise(pixels))
        labels = cell_nouns(ids, glyphs, (nouns.shape[-2], nouns.shape[-1]), len(prototypes) - 1)
        loss = dense_noun_loss(nouns.float(), labels, prototypes).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            right = accuracy(nouns, labels, prototypes)
            print(f"names: step {step + 1} loss {loss.item():.3f} accuracy {right:.2f}", flush=True)


def start(work: Path) -> dict[str, torch.Tensor]:
    """The weights that all runs begin with; made once."""
    names, whole = work / "names.pt", work / "start.pt"
    if not whole.exists():
        if not names.exists():
            model, processor = build(START["seed"], "none")
            learn_names(model, processor)
            torch.save(model.state_dict(), names)
        model, processor = build(START["seed"], "none")
        model.load_state_dict(torch.load(names, weights_only=True))
        copy_tower(model)
        seen, plain = stock(START["seed"], SCENES), LossSection(**FORMS["none"])
        fit(model, processor, plain, replace(OPTIM, schedule="constant"), seen, START["steps"], "start")
        torch.save(model.state_dict(), whole)
    return torch.load(whole, weights_only=True)


def begin(seed: int, fusion: str, work: Path) -> tuple[VLSegModel, VLSegProcessor]:
    """A model with the start's weights. Fusion is new to it, and begins so that it hardly changes the masks."""
    weights = start(work)
    model, processor = build(seed, fusion)
    missing, strange = model.load_state_dict(weights, strict=False)
    new = ("mask_head.fusion.", "mask_head.to_fused.")
    assert not strange
    assert all(name.startswith(new) for name in missing), missing
    if model.mask_head.fusion is not None:
        with torch.no_grad():
            for parameter in model.mask_head.to_fused.parameters():
                parameter.zero_()
            for norm in ("mix.1", "place.1"):
                model.mask_head.fusion.get_parameter(f"{norm}.weight").mul_(0.1)
    return model, processor


def names_of(processor: VLSegProcessor, prototypes: int, pool: tuple[int, ...]) -> Phrases:
    """The noun phrases that name a thing of the pool."""
    table = phrases(processor, prototypes)
    kept = table.means[:, list(pool)].any(-1)
    return Phrases(table.ids[kept], table.there[kept], table.means[kept])


def pulls(model: VLSegModel, losses: dict[str, torch.Tensor], count: float) -> dict[str, float]:
    """Norm of the gradient of each loss, weighted as in training, with respect to all parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    out: dict[str, float] = {}
    for name in ("mask", "target", "stray", "affinity", "sentence"):
        if name in losses and losses[name].requires_grad:
            found = torch.autograd.grad(losses[name] / count, parameters, retain_graph=True, allow_unused=True)
            out[name] = float(torch.stack([g.norm() for g in found if g is not None]).norm())
    return out


@lru_cache(maxsize=1)
def stock(seed: int, count: int) -> list[Scene]:
    """The first scenes of a seed, in memory: every variant of the seed sees the same."""
    return list(itertools.islice(scenes(the_world(), seed), count))


def fit(
    model: VLSegModel,
    processor: VLSegProcessor,
    weights: LossSection,
    optim: OptimSection,
    seen: Iterable[Scene],
    steps: int,
    name: str,
) -> tuple[list[float], list[dict[str, float]]]:
    """Train all but the towers on the scenes, again and again. Returns the loss of every step, and `pulls` of some."""
    optimizer = build_optimizer(model, optim)
    pool = the_world().pool
    assert pool is not None
    assert model.noun_prototypes is not None
    table = names_of(processor, len(model.noun_prototypes), pool)
    stream = itertools.cycle(seen)
    history: list[float] = []
    pulled: list[dict[str, float]] = []
    begun = time.process_time()
    model.train()
    for step in range(steps):
        batch = collate_scenes(list(itertools.islice(stream, IMAGES)), processor)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(step, steps, optim)
        output = model(pixel_values=processor.normalise(batch.pixels), **batch.packed.tensors())
        losses = loss_sums(output, batch, model.config, weights)
        count = float(batch.packed.valid.sum())
        losses["word_noun"] = weights.word_noun * count * table.loss(model)
        if step % PULLS[0] == PULLS[1]:
            pulled.append({"step": step, **pulls(model, losses, count)})
        optimizer.zero_grad()
        (sum(losses.values()) / count).backward()  # type: ignore[union-attr]
        clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        shown = {k: float(v.detach()) / count for k, v in losses.items()}
        history.append(sum(shown.values()))
        if (step + 1) % 50 == 0:
            told = {k: round(v, 3) for k, v in shown.items()}
            print(f"{name}: step {step + 1} {time.process_time() - begun:.0f} s {told}", flush=True)
    return history, pulled


def train(variant: str, seed: int, work: Path, steps: int) -> dict[str, Any]:
    """One run: settings, seconds on the processor, scores and every case."""
    form, _, fusion = variant.partition("+")
    model, processor = begin(seed, fusion or "none", work)
    weights = LossSection(**FORMS[form])
    seen = stock(seed, SCENES)  # not part of the seconds: whichever variant comes first makes them for all
    begun = time.process_time()
    history, pulled = fit(model, processor, weights, OPTIM, seen, steps, f"{variant}/{seed}")
    seconds = time.process_time() - begun
    judged = itertools.islice(scenes(the_world(), VAL_SEED, absent=0.0), VAL_SCENES)
    # every case has its target: what is asked here is which object, not whether there is one
    cases = score_scenes(model, processor, judged, batch=16, threshold=0.0)
    return {
        "variant": variant,
        "seed": seed,
        "steps": steps,
        "images": IMAGES,
        "size": SIZE,
        "judged": VAL_SCENES,
        "rows": ROWS,
        "start": START,
        "weights": {key: getattr(weights, key) for key in ("target", "stray", "affinity", "sentence")},
        "seconds": round(seconds),
        "loss": [round(sum(history[i : i + 25]) / 25, 4) for i in range(0, len(history), 25)],
        "pulls": pulled,
        "scores": summary(cases),
        "cases": [case.to_dict() for case in cases],
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, help="variants to run")
    parser.add_argument("--seed", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--work", type=Path, default=Path("out/target-aware"), help="where runs leave their files")
    parser.add_argument("--table", action="store_true", help="run nothing; write the table of what is there")
    parser.add_argument("--docs", type=Path, default=Path("docs/target-aware.md"))
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout, with --table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.table:
        for seed, variant in itertools.product(args.seed, args.only):
            file = args.work / f"{variant}-{seed}.json"
            if file.exists():
                print(f"{file}: is there")
                continue
            result = train(variant, seed, args.work, args.steps)
            write_whole(file, json.dumps(result))
            told = {name: round(score, 4) for name, score in result["scores"].items()}
            print(f"{file}: {result['seconds']} s {told}", flush=True)
        return
    runs = [json.loads(file.read_text()) for file in sorted(args.work.glob("*-*.json"))]
    if not runs:
        raise VLSegError(f"{args.work}: no run there yet; start one with --only ours --seed 1")
    found = report(runs, VARIANTS)
    write_report(found, args.docs)
    print(json.dumps(found) if args.json else f"{args.docs}\n{verdict(found)}")


if __name__ == "__main__":
    main()
