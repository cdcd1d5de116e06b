"""Every supported family of vision-language models against what must hold for it; writes docs/backbones.md.

    python benchmarks/backbones.py [--family qwen3-vl smolvlm] [--json] [--out docs/backbones.md]

Each cell is run, on a small random checkpoint of the real transformers class that is written to disk and loaded from
there. A new column is one more entry in `COLUMNS`. Without `--family` the page is written anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vlseg.models.modeling import VLSegModel, VLSegOutput
    from vlseg.models.processing import VLSegProcessor

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "backbones.md"
TEXTS = ["the red mug", "dog left of the tree", "zebra", "the second chair from the right which is white", "a cat"]
ENCODER = {
    "kind": "open_clip",
    "embed_dim": 64,
    "vision_cfg": {
        "timm_model_name": "test_convnext",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "",
        "image_size": 64,
    },
}
HEAD = {"dim": 32, "embed_dim": 16, "detail_dim": 8, "layers": 2, "noun_dim": 16}
DINO = {
    "kind": "hf",
    "config": {
        "model_type": "dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
}

# What a user must know that no cell says.
FACTS = {
    "qwen3-vl": ("Qwen3-VL", "its own shape, 32 px a token", "causal; M-RoPE; deepstack"),
    "qwen3-vl-moe": (
        "Qwen3-VL-MoE",
        "its own shape, 32 px a token",
        "as Qwen3-VL; experts stay in float when quantised",
    ),
    "qwen2.5-vl": ("Qwen2.5-VL", "its own shape, 28 px a token", "causal; M-RoPE; windows in the tower"),
    "smolvlm": ("SmolVLM, SmolVLM2", "a square; `split`: tiles, too", "causal"),
    "idefics3": ("Idefics3", "a square; `split`: tiles, too", "causal"),
    "internvl": ("InternVL (`-hf`)", "a square; `split`: tiles, too", "causal"),
    "llava-onevision": ("LLaVA-OneVision", "a square and a newline", "causal"),
    "paligemma": ("PaliGemma", "a square", "the image is one block, each query is one"),
    "paligemma2": ("PaliGemma 2", "a square", "as PaliGemma; eager attention, for it is capped"),
    "fastvlm": ("FastVLM", "its own shape", "causal"),
}

PREAMBLE = """# Vision-language backbones

`vlseg.models.build.from_vlm("org/name or folder")` makes a native model of any checkpoint of these families, through
its own transformers class. An image is encoded once and stands once in the row, `[image][query 1]...[query K]`; the
table says for each family that this changes no answer, and what else was tried on it.

The page is written by `python benchmarks/backbones.py`. Every cell is run, on a small random checkpoint of the real
class that is written to disk and loaded from there: it shows that the machinery holds, not how well a trained model
segments. Transformers {transformers}, torch {torch}, on a CPU.
"""

NOTES = """
- **packed = one by one**: largest difference of the token logits of {k} packed queries to those of {k} single calls, in
  shares of the largest logit; fp32, sdpa / eager. Held to 1e-6.
- **20 steps**: loss of one batch before and after 20 steps of AdamW on all weights. Held to: at least halved.
- **save, load**: weights bit for bit, token logits to 1e-6, typed "[SEG]" still text.
- **bf16**, **int8**, **nf4**: mean IoU of the masks with those of fp32. Random weights exaggerate the loss: they have
  no margin. On the embedded weights it is above 0.95 (`tests/models/test_precision.py`). Held to 0.9, 0.9 and 0.5.
- **pixel encoders**, **heads**: packed masks equal single ones to 1e-5 of the largest logit, and the part learns.
  `hf` is run as DINOv2.

"its own shape": the tower sees the image in its aspect ratio. "a square": the image squeezed to one, as the
checkpoint's own processor does for its global view; the pixel encoder still sees the image in its own shape. `split`
(`from_vlm(..., image={{"split": True}})`) adds tiles of that square's size, up to 6 a side, in the checkpoint's order.
"""


@dataclass(slots=True)
class Bench:
    """A family at work: the checkpoint it comes from, the native model's folder, the model from there, one batch."""

    checkpoint: Path
    folder: Path
    model: VLSegModel
    processor: VLSegProcessor
    inputs: dict[str, torch.Tensor]

    def load(self, **options: Any) -> VLSegModel:
        """The model from its folder again."""
        from vlseg.models.modeling import VLSegModel

        return VLSegModel.from_pretrained(self.folder, **options).eval()

    def answer(self, model: VLSegModel, texts: list[str] = TEXTS) -> VLSegOutput:
        """Without gradients; pixels in the model's dtype."""
        import torch

        queries = self.processor.pack([texts]).tensors()
        with torch.no_grad():
            return model(pixel_values=self.inputs["pixel_values"].to(model.dtype), **queries)


def prepare(name: str, root: Path) -> Bench:
    """A native model on a random checkpoint of the family, its masks neither empty nor full; saved, loaded."""
    import numpy as np
    import torch
    from PIL import Image

    from vlseg.models.build import from_vlm
    from vlseg.models.modeling import VLSegModel
    from vlseg.models.processing import VLSegProcessor
    from vlseg.models.specimens import write_specimen

    torch.manual_seed(1)
    made, processor = from_vlm(
        write_specimen(name, root / "checkpoint"), pixel_encoder=ENCODER, head=HEAD, image={"area": 96 * 128}
    )
    colours = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    image = Image.fromarray(colours).resize((256, 192), Image.Resampling.NEAREST)
    inputs = processor([image], [TEXTS])
    with torch.no_grad():
        made.mask_head.to_mask[-1].weight.mul_(40)
        made.mask_head.bias.bias.sub_(made(**inputs).mask_logits.median())
    made.save_pretrained(root / "native")
    processor.save_pretrained(root / "native")
    model = VLSegModel.from_pretrained(root / "native").eval()
    return Bench(root / "checkpoint", root / "native", model, VLSegProcessor.from_pretrained(root / "native"), inputs)


def packing(bench: Bench) -> tuple[bool, str]:
    """See NOTES."""
    worst = []
    for attention in ("sdpa", "eager"):
        model = bench.load(attn_implementation=attention)
        packed = bench.answer(model)
        share = (packed.mask_logits > 0).float().mean((0, 2, 3))
        earnest = bool(((share > 0.05) & (share < 0.95)).all())
        logits = packed.token_logits[0]
        single = [bench.answer(model, [text]).token_logits[0, 0] for text in TEXTS]
        apart = max(float((s - p).abs().max() / logits.abs().max()) for s, p in zip(single, logits, strict=True))
        worst.append(apart if earnest else float("inf"))
    return max(worst) <= 1e-6, " / ".join(f"{value:.0e}" for value in worst)


def twenty_steps(bench: Bench) -> tuple[bool, str]:
    """See NOTES."""
    import torch
    import torch.nn.functional as F

    model = bench.load().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, len(TEXTS), 3, 4, generator=generator)
    config, losses = model.config, []
    present = torch.tensor([[config.seg_token_id, config.rej_token_id][n % 3 == 2] for n in range(len(TEXTS))])
    for _ in range(21):
        output = model(**bench.inputs)
        truth = (F.interpolate(coarse, output.mask_logits.shape[-2:]) > 0.6).float()
        loss = F.binary_cross_entropy_with_logits(output.mask_logits, truth)
        loss = loss + F.cross_entropy(output.token_logits[0], present)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[-1] <= losses[0] / 2, f"{losses[0]:.2f} → {losses[-1]:.2f}"


def save_load(bench: Bench) -> tuple[bool, str]:
    """See NOTES."""
    import torch

    from vlseg.models.processing import VLSegProcessor

    with tempfile.TemporaryDirectory() as folder:
        bench.model.save_pretrained(folder)
        bench.processor.save_pretrained(folder)
        again, processor = type(bench.model).from_pretrained(folder).eval(), VLSegProcessor.from_pretrained(folder)
    weights = again.state_dict()
    same = all(torch.equal(value, weights[key]) for key, value in bench.model.state_dict().items())
    want, got = bench.answer(bench.model).token_logits, bench.answer(again).token_logits
    close = float((want - got).abs().max() / want.abs().max()) <= 1e-6
    typed = bench.model.config.seg_token_id not in processor.query_ids("the [SEG] mug")
    return same and close and typed, "equal" if same and close and typed else "differs"


def precision(kind: str, floor: float) -> Callable[[Bench], tuple[bool, str]]:
    """The column of a dtype."""

    def cell(bench: Bench) -> tuple[bool, str]:
        import torch

        want = bench.answer(bench.model).mask_logits > 0
        got = bench.answer(bench.load(dtype=torch.bfloat16 if kind == "bf16" else kind)).mask_logits > 0
        iou = float(((want & got).sum((2, 3)) / (want | got).sum((2, 3))).mean())
        return iou >= floor, f"{iou:.3f}"

    return cell


def parts(option: str, specs: dict[str, dict[str, Any]]) -> Callable[[Bench], tuple[bool, str]]:
    """The column of the kinds that `from_vlm` takes for `option`."""

    def cell(bench: Bench) -> tuple[bool, str]:
        import torch

        from vlseg.models.build import from_vlm

        failed = []
        for kind, spec in specs.items():
            torch.manual_seed(1)
            options = {"pixel_encoder": ENCODER, "head": HEAD, "image": {"area": 96 * 128}} | {option: spec}
            model, _ = from_vlm(bench.checkpoint, **options)
            packed = bench.answer(model).mask_logits[0]
            single = [bench.answer(model, [text]).mask_logits[0, 0] for text in TEXTS]
            apart = max(float((s - p).abs().max() / packed.abs().max()) for s, p in zip(single, packed, strict=True))
            model.train()(**bench.inputs).mask_logits.square().mean().backward()
            part = model.pixel_encoder if option == "pixel_encoder" else model.mask_head
            if apart > 1e-5 or not any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters()):
                failed.append(kind)
        return not failed, ", ".join(failed or specs)

    return cell


COLUMNS: dict[str, Callable[[Bench], tuple[bool, str]]] = {
    "packed = one by one": packing,
    "20 steps": twenty_steps,
    "save, load": save_load,
    "bf16": precision("bf16", 0.9),
    "int8": precision("int8", 0.9),
    "nf4": precision("nf4", 0.5),
    "pixel encoders": parts("pixel_encoder", {"open_clip": ENCODER, "hf": DINO, "vlm": {"kind": "vlm"}}),
    "heads": parts("head", {kind: {**HEAD, "kind": kind} for kind in ("dot", "eomt", "sam")}),
}


def run(name: str) -> dict[str, dict[str, Any]]:
    """All cells of a family: {column: {"holds": bool, "cell": str, "seconds": float}}."""
    cells = {}
    with tempfile.TemporaryDirectory() as root:
        bench = prepare(name, Path(root))
        for column, check in COLUMNS.items():
            start = time.perf_counter()
            holds, cell = check(bench)
            cells[column] = {"holds": holds, "cell": cell, "seconds": round(time.perf_counter() - start, 1)}
    return cells


def page(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """docs/backbones.md."""
    import torch
    import transformers

    head = ["family", "an image becomes", "attention", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, cells in results.items():
        marked = [c["cell"] if c["holds"] else f"**fails: {c['cell']}**" for c in cells.values()]
        lines.append("| " + " | ".join([*FACTS[name], *marked]) + " |")
    start = PREAMBLE.format(transformers=transformers.__version__, torch=torch.__version__.split("+")[0])
    return start + "\n" + "\n".join(lines) + "\n" + NOTES.format(k=len(TEXTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=list(FACTS), help="only these; the page is not written")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()

    from vlseg.data.files import write_whole
    from vlseg.systems.quiet import quiet_loading

    results = {}
    for name in args.family or FACTS:
        with quiet_loading():
            results[name] = run(name)
        if not args.json:
            print(
                name, *(f"{c}={v['cell']}{'' if v['holds'] else ' FAILS'}" for c, v in results[name].items()), sep="  "
            )
    if args.json:
        print(json.dumps(results))
    if not args.family:
        write_whole(args.out, page(results))
    sys.exit(not all(cell["holds"] for cells in results.values() for cell in cells.values()))


if __name__ == "__main__":
    main()
