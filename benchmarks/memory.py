"""Memory and speed of training, by recipe: measured on a random Qwen3-VL of middling size, computed for its real sizes.

Measured: every (recipe, way) is a process of its own that makes real optimizer steps of `vlseg train` on drawn scenes.
A step sees the same number of expressions, "packed" behind one picture, or in "rows", each with a picture of its own.

    python benchmarks/memory.py [--recipe lora adalora qlora qat full] [--side 256] [--queries 8] [--json]
    python benchmarks/memory.py --docs docs/fine-tuning.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import replace_block
from timing import machine

RECIPES = ("lora", "adalora", "qlora", "qat", "full")
WAYS = ("packed", "rows")
STEPS = 2  # timed, after one that is not
RUN = 1000  # steps of the run of which these are the first
MIB = 2**20

# A quarter of the widths of Qwen3-VL-2B.
TEXT = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64}  # fmt: skip
VISION = {"depth": 8, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 4, "out_hidden_size": 512,
          "num_position_embeddings": 1024, "deepstack_visual_indexes": [2, 4, 6]}  # fmt: skip

# Published shapes of Qwen3-VL: text (hidden, MLP, layers, heads, key-value heads, tied), vision (depth, hidden, MLP).
SIZES: dict[str, tuple[tuple[int, int, int, int, int, bool], tuple[int, int, int]]] = {
    "Qwen3-VL-2B": ((2048, 6144, 28, 16, 8, True), (24, 1024, 4096)),
    "Qwen3-VL-4B": ((2560, 9728, 36, 32, 8, True), (24, 1024, 4096)),
    "Qwen3-VL-8B": ((4096, 12288, 36, 32, 8, False), (27, 1152, 4304)),
}
VOCABULARY = 151_936
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: 4 bits, an 8-bit scale for 64 and a 32-bit one for 256 of these


def write_model(folder: Path) -> Path:
    """The random checkpoint that is measured, as a user finds one on the Hub."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from vlseg.models.specimens import write_specimen

    write_specimen("qwen3-vl", folder)
    tiny = AutoConfig.from_pretrained(folder)
    tree = tiny.to_dict()
    tree["text_config"] |= TEXT
    tree["text_config"]["rope_parameters"] |= {"mrope_section": [12, 10, 10]}
    tree["text_config"].pop("layer_types", None)  # one a layer, made anew
    tree["vision_config"] |= VISION
    config = type(tiny)(**tree)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def configured(recipe: str, way: str, folder: Path, side: int, queries: int) -> Any:
    """The shipped recipe with one picture of K queries a step, or K pictures of one; a run whose beginning is measured:
    AdaLoRA holds most before it prunes."""
    from vlseg.cli.train import find_config
    from vlseg.config import load
    from vlseg.training.config import TrainConfig

    images, each = (1, queries) if way == "packed" else (queries, 1)
    settings = [f"model={folder}", f"out={folder / 'run'}", f"steps={RUN}", f"model.area={side * side}",
                f"data.train=sprites?n={images * (STEPS + 1)}&size={side}x{side}&queries={queries}", "data.workers=0",
                f"data.images={images}", f"data.queries={each}", "model.checkpointing=false", "trackers=[]", "threads=1",  # noqa: E501
                "optim.warmup=1"]  # fmt: skip
    return load(TrainConfig, find_config(recipe), settings)


def measure(recipe: str, way: str, folder: Path, side: int, queries: int) -> dict[str, Any]:
    """In this process: real steps; peak memory above what the libraries take, CPU seconds a step, and sizes."""
    import torch

    from vlseg.metrics.cost import peak_memory
    from vlseg.training.adapters import count_parameters
    from vlseg.training.dry_run import memory_of
    from vlseg.training.loop import Trainer

    before = peak_memory()["process"]
    run = Trainer(configured(recipe, way, folder, side, queries))
    run.model.train()
    stream, seconds, expressions = run.batches(), [], 0
    for _ in range(STEPS + 1):
        batch = next(stream)
        start = time.process_time()
        run.train_step([batch])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.process_time() - start)
        expressions = int(batch.packed.valid.sum())
    state = memory_of(run.plain, run.config.optim.ema, bool(run.config.optim.matrix_lr))
    peaks = peak_memory()
    trained, total = (sum(pair[i] for pair in count_parameters(run.plain).values()) for i in (0, 1))
    return {
        "recipe": recipe,
        "way": way,
        "trained": trained,
        "total": total,
        "state_mib": (state.weights + state.gradients + state.optimizer) / MIB,
        "peak_mib": peaks.get("gpu", peaks["process"] - before),
        "seconds": sum(seconds[1:]) / STEPS,
        "expressions": expressions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else machine()["cpu"],
    }


def in_own_process(recipe: str, way: str, folder: Path, side: int, queries: int) -> dict[str, Any]:
    """`measure` where nothing else has used memory."""
    call = [sys.executable, __file__, "--one", recipe, way, str(folder), "--side", str(side), "--queries", str(queries)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{recipe} {way}: {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def computed(size: str, recipe: str) -> dict[str, Any]:
    """Bytes that a run holds from step to step, activations left out: shapes without weights, and arithmetic."""
    import torch
    from transformers import Qwen3VLConfig

    from vlseg.cli.train import find_config
    from vlseg.config import load
    from vlseg.models.build import PIXEL_ENCODER
    from vlseg.models.configuration import VLSegConfig
    from vlseg.models.modeling import VLSegModel
    from vlseg.models.pixel_encoder_named import named
    from vlseg.training.adapters import attach, count_parameters, linear_layers
    from vlseg.training.config import TrainConfig

    (hidden, mlp, layers, heads, kv, tied), (depth, width, vision_mlp) = SIZES[size]
    text = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, "head_dim": 128, "vocab_size": VOCABULARY, "tie_word_embeddings": tied}  # fmt: skip  # noqa: E501
    vision = {"depth": depth, "hidden_size": width, "intermediate_size": vision_mlp, "num_heads": 16,
              "out_hidden_size": hidden}  # fmt: skip
    config = load(TrainConfig, find_config(recipe))
    vlm = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = VLSegModel(VLSegConfig(vlm=vlm, pixel_encoder=named(PIXEL_ENCODER)[0], seg_token_id=1, rej_token_id=2))
    total = sum(p.numel() for p in model.parameters())
    packed = sum(m.weight.numel() for m in map(model.get_submodule, linear_layers(model, ["decoder"])))  # type: ignore[misc,operator]
    importances = 0.0
    if config.adapter.kind == "none":
        trained, weights = total, 4.0 * total
    else:
        new = ["pixel_encoder.pyramid"] if getattr(model.pixel_encoder, "pyramid", None) is not None else []
        adapted = attach(model, config, new)
        trained = sum(pair[0] for pair in count_parameters(adapted).values())
        if config.adapter.kind == "adalora":  # three running importances of each adapter weight
            importances = 12.0 * sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
        held = {"nf4": NF4_BYTES, "int8": 1.0}.get(config.model.base)
        weights = 2.0 * total if held is None else held * packed + 2.0 * (total - packed)
        weights += 4.0 * trained
    return {"size": size, "recipe": recipe, "total": total, "trained": trained, "weights": weights,
            "bytes": weights + 12.0 * trained + importances}  # fmt: skip


def page(measured: list[dict[str, Any]], estimates: list[dict[str, Any]], side: int, queries: int) -> str:
    """Both tables as Markdown."""
    lines = [
        f"Measured: a random Qwen3-VL of {measured[0]['total'] / 1e6:.0f} M weights (with its heads), {side} x {side} px, "  # noqa: E501
        f"{queries} expressions a step, one thread of {measured[0]['device']}. State: weights, gradients and optimizer "
        "(computed); peak: what the process took on top of the libraries.",
        "",
        "| recipe | trained | way | state MiB | peak MiB | s a step | expressions/s | packed is faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_way = {(entry["recipe"], entry["way"]): entry for entry in measured}
    for (recipe, way), entry in by_way.items():
        rows = by_way.get((recipe, "rows"))
        gain = ""
        if way == "packed" and rows:
            speed = entry["expressions"] / entry["seconds"] * rows["seconds"] / rows["expressions"]
            gain = f"{speed:.1f} x"
        lines.append(
            f"| {recipe} | {entry['trained'] / 1e6:.1f} M | {way} | {entry['state_mib']:.0f} | {entry['peak_mib']:.0f} | "  # noqa: E501
            f"{entry['seconds']:.2f} | {entry['expressions'] / entry['seconds']:.2f} | {gain} |"
        )
    lines += [
        "",
        "Computed, never measured: GiB that a run of the shipped recipe holds from step to step on one device (weights, "  # noqa: E501
        "gradients, two moments in float32, AdaLoRA's importances before its last pruning); activations come on top, "
        "and `--dry-run` tells them.",
        "",
        "| model | weights | " + " | ".join(RECIPES) + " |",
        "|---|---|" + "---|" * len(RECIPES),
    ]
    for size in SIZES:
        cells = {entry["recipe"]: entry for entry in estimates if entry["size"] == size}
        if cells:
            row = [f"{cells[r]['bytes'] / 2**30:.1f}" if r in cells else "" for r in RECIPES]
            total = next(iter(cells.values()))["total"]
            lines.append(f"| {size} | {total / 1e9:.2f} G | {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--queries", type=int, default=8, help="expressions a step")
    parser.add_argument("--docs", type=Path, help="a page whose `memory` block gets the tables")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.add_argument("--one", nargs=3, metavar=("RECIPE", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        recipe, way, folder = args.one
        print(json.dumps(measure(recipe, way, Path(folder), args.side, args.queries)))
        return
    from vlseg.systems.quiet import quiet_loading

    measured = []
    with tempfile.TemporaryDirectory() as place, quiet_loading():
        folder = write_model(Path(place) / "vlm")
        for recipe in args.recipe:
            for way in args.way:
                measured.append(in_own_process(recipe, way, folder, args.side, args.queries))
                print(f"{recipe} {way}: {measured[-1]['seconds']:.2f} s", file=sys.stderr)
        estimates = [computed(size, recipe) for size in SIZES for recipe in RECIPES]
    text = page(measured, estimates, args.side, args.queries)
    if args.docs:
        replace_block(args.docs, "memory", text)
    told = {"measured": measured, "computed": estimates, "machine": machine()}
    print(json.dumps(told) if args.json else text)


if __name__ == "__main__":
    main()
