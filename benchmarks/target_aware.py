"""What the target-aware losses and rectified cost aggregation do where a look-alike of the same noun is in the picture.

A reduced sprite world (40 things, every expression has a distractor with the noun of its target), a small model, and
the same scenes, steps and start for every variant of a seed. Each run takes minutes on one core, leaves one JSON file,
and is not run again; the table pairs variants case by case.

    python benchmarks/target_aware.py --only ours --seed 1     one run (and the seed's warm-up, if it is not there yet)
    python benchmarks/target_aware.py                          all runs that are missing, then the table
    python benchmarks/target_aware.py --table                  the table of what is there, also to docs/target-aware.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from target_aware_report import report, write_report
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
from vlseg.training.batches import Batch, collate_scenes
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

FORMS = {"none": {"target_form": "none"}, "talent": {"target_form": "talent"}, "ours": {"target_form": "ours"}}
VARIANTS = [f"{form}{fusion}" for fusion in ("", "+rca") for form in FORMS]
SEEDS = (1, 2, 3)

SIZE = (128, 128)
THINGS = 40
KINDS = {"size": 0.2, "superlative": 0.4, "position": 0.3, "absent-hard": 0.1}
QUERIES = 6  # asked of a scene; those whose distractors have another noun are dropped
IMAGES = 12  # a step
STEPS = 1000
WARMUP = {"steps": 400, "images": 16}
STRAY = 0.3
PULLS = (200, 100)  # every so many steps, from which on, the gradient of each loss is measured
OPTIM = OptimSection(lr=2e-3, matrix_lr=2e-2, warmup=30, schedule="constant-decay", decay=0.3, embedding_scale=4.0)
HEAD = {"dim": 64, "embed_dim": 32, "noun_dim": 32, "layers": 3, "presence": True}
VAL_SEED, VAL_SCENES = 900_001, 250


def the_world() -> SpriteWorld:
    """Every n-th thing of the sprite world, drawn plainly."""
    names = SpriteWorld().nouns
    return SpriteWorld("plain", only=names[:: len(names) // THINGS][:THINGS])


def reduced(scene: Scene) -> Scene | None:
    """The scene with those queries only that have a distractor of their target's noun; None for fewer than two of them.

    Queries without a target stay: they are part of training, and no case of the scores below.
    """

    def alike(query: Any) -> bool:
        own = {scene.objects[t].glyph for t in query.targets}
        return bool(own & {scene.objects[d].glyph for d in query.distractors})

    scene.queries = [q for q in scene.queries if not q.targets or alike(q)]
    return scene if sum(bool(q.targets) for q in scene.queries) >= 2 else None


def scenes(world: SpriteWorld, seed: int, kinds: dict[str, float]) -> Iterator[Scene]:
    """The endless stream of reduced scenes of a seed."""
    made = (world.scene(seed, index, SIZE, QUERIES, kinds) for index in itertools.count())
    return (scene for scene in map(reduced, made) if scene is not None)


def build(seed: int, fusion: str) -> tuple[VLSegModel, VLSegProcessor]:
    """The small model of a seed; memory layout and depthwise kernels as in training on CPUs."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), seed, head={**HEAD, "fusion": fusion})
    model.config.image["area"] = processor.image["area"] = SIZE[0] * SIZE[1]
    prefer_float32_depthwise(model)
    nn.Module.to(model, memory_format=torch.channels_last)
    return model, processor


def warm(seed: int, work: Path, steps: int) -> dict[str, torch.Tensor]:
    """Pixel encoder, decoder and noun prototypes of a seed after they have learned the things' names on mosaics."""
    file = work / f"warm-{seed}-{steps}.pt"
    if not file.exists():
        model, processor = build(seed, "none")
        tower, pool = NounTower(model), the_world().pool
        optim = replace(OPTIM, weight_decay=0.02)
        optimizer = build_optimizer(tower, optim)
        for step in range(steps):
            made = [mosaic(seed, 1024 * step + i, SIZE, 0.0, pool) for i in range(WARMUP["images"])]
            glyphs = torch.full((len(made), max(len(m[2]) for m in made)), -1)
            for row, (_, _, names) in zip(glyphs, made, strict=True):
                row[: len(names)] = torch.from_numpy(names)
            pixels, ids = (torch.stack([torch.tensor(m[n]) for m in made]) for n in (0, 1))
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * rate(step, steps, optim)
            nouns, prototypes = tower(processor.normalise(pixels))
            labels = cell_nouns(ids, glyphs, (nouns.shape[-2], nouns.shape[-1]), len(prototypes) - 1)
            loss = dense_noun_loss(nouns.float(), labels, prototypes).mean()
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % 100 == 0:
                right = accuracy(nouns, labels, prototypes)
                print(f"warm-up {seed}: step {step + 1} loss {loss.item():.3f} accuracy {right:.2f}", flush=True)
        parts = ("pixel_encoder.", "pixel_decoder.", "noun_prototypes")
        torch.save({k: v for k, v in model.state_dict().items() if k.startswith(parts)}, file)
    return torch.load(file, weights_only=True)


def names_of(processor: VLSegProcessor, prototypes: int, pool: tuple[int, ...]) -> Phrases:
    """The noun phrases that name a thing of the pool."""
    table = phrases(processor, prototypes)
    kept = table.means[:, list(pool)].any(-1)
    return Phrases(table.ids[kept], table.there[kept], table.means[kept])


def pulls(model: VLSegModel, losses: dict[str, torch.Tensor], count: float) -> dict[str, float]:
    """Norm of the gradient of each loss, weighted as in training, with respect to all parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    out = {}
    for name in ("mask", "target", "stray", "affinity", "sentence"):
        if name in losses and losses[name].requires_grad:
            found = torch.autograd.grad(losses[name] / count, parameters, retain_graph=True, allow_unused=True)
            out[name] = float(torch.stack([g.norm() for g in found if g is not None]).norm())
    return out


def train(variant: str, seed: int, work: Path, steps: int, warmup: int) -> dict[str, Any]:
    """One run: settings, seconds on the processor, scores and every case."""
    form, _, fusion = variant.partition("+")
    model, processor = build(seed, fusion or "none")
    model.load_state_dict(warm(seed, work, warmup), strict=False)
    copy_tower(model)
    start, world = time.process_time(), the_world()
    weights = replace(LossSection(stray=STRAY), **FORMS[form])
    optimizer = build_optimizer(model, OPTIM)
    assert world.pool is not None
    assert model.noun_prototypes is not None
    table = names_of(processor, len(model.noun_prototypes), world.pool)
    stream, history, pulled = scenes(world, seed, KINDS), [], []
    model.train()
    for step in range(steps):
        batch: Batch = collate_scenes(list(itertools.islice(stream, IMAGES)), processor)
        model.set_progress(step / steps)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(step, steps, OPTIM)
        output = model(pixel_values=processor.normalise(batch.pixels), **batch.packed.tensors())
        losses = loss_sums(output, batch, model.config, weights)
        count = float(batch.packed.valid.sum())
        losses["word_noun"] = weights.word_noun * count * table.loss(model)
        if step % PULLS[0] == PULLS[1]:
            pulled.append({"step": step, **pulls(model, losses, count)})
        optimizer.zero_grad()
        (sum(losses.values()) / count).backward()
        clip_grad_norm_(model.parameters(), OPTIM.clip)
        optimizer.step()
        history.append(sum(float(v.detach()) for v in losses.values()) / count)
        if (step + 1) % 100 == 0:
            shown = {k: round(float(v.detach()) / count, 3) for k, v in losses.items()}
            print(f"{variant}/{seed}: step {step + 1} {time.process_time() - start:.0f} s {shown}", flush=True)
    seconds = time.process_time() - start
    present = {kind: weight for kind, weight in KINDS.items() if not kind.startswith("absent")}
    judged = list(itertools.islice(scenes(world, VAL_SEED, present), VAL_SCENES))
    # every case has its target: what is asked here is which object, not whether there is one
    cases = score_scenes(model, processor, judged, batch=16, threshold=0.0)
    return {
        "variant": variant,
        "seed": seed,
        "steps": steps,
        "warmup": warmup,
        "stray": weights.stray,
        "seconds": round(seconds),
        "loss": [round(sum(history[i : i + 50]) / 50, 4) for i in range(0, len(history), 50)],
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
    parser.add_argument("--warmup", type=int, default=WARMUP["steps"], help="steps of each seed's warm-up")
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
            result = train(variant, seed, args.work, args.steps, args.warmup)
            write_whole(file, json.dumps(result))
            print(f"{file}: {result['seconds']} s { ({k: round(v, 4) for k, v in result['scores'].items()}) }")
        return
    runs = [json.loads(file.read_text()) for file in sorted(args.work.glob("*-*.json"))]
    if not runs:
        raise VLSegError(f"{args.work}: no run there yet; start one with --only ours --seed 1")
    told = report(runs, VARIANTS)
    write_report(told, args.docs)
    print(json.dumps(told) if args.json else args.docs.read_text())


if __name__ == "__main__":
    main()
