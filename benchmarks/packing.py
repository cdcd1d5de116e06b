"""Training with K expressions on one image: packed, against one expression a row and against a LISA-like loop.

    python benchmarks/packing.py [--queries 1 2 4 8 16] [--rounds 3] [--tokens 16] [--whole] [--json]

The model is a `VLSegModel` on a Qwen3-VL of fixed shape and random weights (a quarter of the widths of the 2B model;
speed does not depend on values): 512 x 512 pixels are 256 image tokens. LoRA on the language model's q and v learns.

    packed     [image][query 1]..[query K] in one row: the image is encoded once and read once
    lisa-like  the image is encoded once, the language model reads it again for every expression
    rows       every expression has its own row with its own image: encoded and read K times

Loss and gradients of the three are compared before anything is timed. All run in turns; a ratio is the median of the
ratios within a round. `--clock cpu` counts the seconds that the process computes, for machines that are shared.
`--whole` adds pixel encoder, pixel decoder and mask head, which learn, too. Peak memory is that of a process that runs
one step of one way at the largest K.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from timing import machine, paired, ratio

if TYPE_CHECKING:
    import torch

    from vlseg.models.modeling import ImageFeatures, VLSegModel

WAYS = ("rows", "lisa-like", "packed")
IMAGE, START, END, SEG, REJ = 10, 11, 12, 8, 9


def build(whole: bool) -> VLSegModel:
    """The model of fixed shape, adapters on, in training mode."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import Qwen3VLConfig

    from vlseg.models.configuration import VLSegConfig
    from vlseg.models.modeling import VLSegModel

    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    vlm = Qwen3VLConfig(
        text_config={
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "vocab_size": 8192,
            "max_position_embeddings": 4096,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 8,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
            "out_hidden_size": 512,
            "num_position_embeddings": 1024,
            "deepstack_visual_indexes": [2, 4, 6],
        },
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
        video_token_id=13,
    )
    encoder = {"timm_model_name": "convnext_atto", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": ""}
    config = VLSegConfig(
        vlm=vlm,
        pixel_encoder={"kind": "open_clip", "embed_dim": 64, "vision_cfg": {**encoder, "image_size": 256}},
        seg_token_id=SEG,
        rej_token_id=REJ,
        prefix={"before": [5, 6, START], "after": [END]},
    )
    torch.manual_seed(0)
    model = VLSegModel(config)
    model.requires_grad_(False)
    for part in (model.pixel_encoder, model.pixel_decoder, model.mask_head):
        part.requires_grad_(whole)
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model\.layers\..*\.(q_proj|v_proj)")
    return inject_adapter_in_model(adapters, model).train()


class Step:
    """One picture with K expressions of T tokens, and a training step on it in each way."""

    def __init__(self, model: VLSegModel, k: int, tokens: int, whole: bool):
        import torch

        from vlseg.models.packing import pack_queries

        generator = torch.Generator().manual_seed(k)
        self.model, self.k, self.whole = model, k, whole
        self.pixels = torch.randn(1, 3, 512, 512, generator=generator)
        queries = torch.randint(20, 8000, (k, tokens), generator=generator).tolist()
        self.one_row = pack_queries([queries], 0).tensors()
        self.own_rows = pack_queries([[query] for query in queries], 0).tensors()
        self.answers = torch.tensor([SEG if n % 4 else REJ for n in range(k)])

    def encode(self, pixels: torch.Tensor) -> ImageFeatures:
        """What the language model, and with `whole` the mask head, needs of the picture."""
        from vlseg.models.modeling import ImageFeatures

        if self.whole:
            return self.model.encode_image(pixels)
        return ImageFeatures(self.model.family.encode(self.model.vlm, pixels), None)  # type: ignore[arg-type]

    def loss(self, image: ImageFeatures, queries: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean over the expressions."""
        import torch.nn.functional as F

        names = ("query_ids", "query_owner", "query_offset", "query_answers")
        states = self.model.read_queries(image, *(queries[name] for name in names))
        logits = self.model.family.token_logits(self.model.vlm, states)
        total = F.cross_entropy(logits.flatten(0, 1), self.answers)
        if self.whole:
            masks = self.model.mask_head(states, image.pixels).logits
            total = total + F.softplus(masks).mean()
        return total

    def run(self, way: str) -> torch.Tensor:
        """Forward and backward; returns the loss."""
        self.model.zero_grad(set_to_none=True)
        if way == "rows":
            loss = self.loss(self.encode(self.pixels.expand(self.k, -1, -1, -1)), self.own_rows)
        elif way == "lisa-like":
            loss = self.loss(repeated(self.encode(self.pixels), self.k), self.own_rows)
        else:
            loss = self.loss(self.encode(self.pixels), self.one_row)
        loss.backward()
        return loss.detach()

    def gradients(self, way: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and all gradients in one vector."""
        import torch

        loss = self.run(way)
        return loss, torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def repeated(image: ImageFeatures, k: int) -> ImageFeatures:
    """The features of one image, standing for K."""
    from dataclasses import replace

    def each(tensor: Any) -> Any:
        return None if tensor is None else tensor.expand(k, *tensor.shape[1:])

    tokens = replace(
        image.tokens,
        pooler_output=each(image.tokens.pooler_output),
        deepstack=tuple(each(level) for level in image.tokens.deepstack),
    )
    pixels = image.pixels
    if pixels is not None:
        memory = [each(level) for level in pixels.memory]
        pixels = replace(pixels, memory=memory, embedding=each(pixels.embedding), detail=each(pixels.detail))
    return replace(image, tokens=tokens, pixels=pixels)


def compare(step: Step) -> dict[str, float]:
    """Largest difference to `rows`: of the loss, and of any gradient in shares of the largest."""
    want_loss, want = step.gradients("rows")
    worst = {"max_loss_diff": 0.0, "max_grad_diff": 0.0}
    for way in WAYS[1:]:
        loss, got = step.gradients(way)
        worst["max_loss_diff"] = max(worst["max_loss_diff"], float((loss - want_loss).abs()))
        worst["max_grad_diff"] = max(worst["max_grad_diff"], float((got - want).abs().max() / want.abs().max()))
    return worst


def peaks(argv: list[str], k: int) -> dict[str, int]:
    """Peak resident MiB of each way, each in a process of its own."""
    # Started before this process holds anything: Linux hands the parent's peak down to a child.
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, *argv, "--only", way, "--queries", str(k)]
        found[way] = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tokens", type=int, default=16, help="tokens of an expression, its share of a template included"
    )
    parser.add_argument("--whole", action="store_true", help="with pixel encoder and mask head")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        Step(build(args.whole), args.queries[0], args.tokens, args.whole).run(args.only)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    options = ["--tokens", str(args.tokens), *(["--whole"] if args.whole else [])]
    memory = peaks(options, max(args.queries))

    import torch
    import transformers

    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    model = build(args.whole)
    result: dict[str, Any] = {
        "machine": {**machine(), "torch": torch.__version__, "transformers": transformers.__version__},
        "threads": torch.get_num_threads(),
        "clock": args.clock,
        "image_tokens": 256,
        "query_tokens": args.tokens,
        "part": "whole model" if args.whole else "language model",
        **compare(Step(model, 3, args.tokens, args.whole)),
        "expressions_per_s": {},
        "packed_vs_rows": {},
        "packed_vs_lisa_like": {},
        "peak_mib": {str(max(args.queries)): memory},
    }
    for k in args.queries:
        step = Step(model, k, args.tokens, args.whole)
        ways: dict[str, Callable[[], Any]] = {way: lambda way=way, step=step: step.run(way) for way in WAYS}
        seconds = paired(ways, args.rounds, clock)
        result["expressions_per_s"][str(k)] = {w: round(k / statistics.median(s), 3) for w, s in seconds.items()}
        result["packed_vs_rows"][str(k)] = round(ratio(seconds["rows"], seconds["packed"]), 2)
        result["packed_vs_lisa_like"][str(k)] = round(ratio(seconds["lisa-like"], seconds["packed"]), 2)
    if args.json:
        print(json.dumps(result))
        return
    print("  ".join(f"{key}={value}" for key, value in result["machine"].items()))
    setting = f"{result['part']}, {args.tokens} tokens an expression, {result['threads']} threads"
    print(f"{setting}; expressions a second ({args.clock} time)")
    print("gradients differ by {max_grad_diff:.1e} of the largest, losses by {max_loss_diff:.1e}".format(**result))
    print(f"{'K':>3}{''.join(f'{way:>12}' for way in WAYS)}{'x rows':>10}{'x lisa-like':>13}")
    for k, speeds in result["expressions_per_s"].items():
        numbers = "".join(f"{speeds[way]:12.2f}" for way in WAYS)
        print(f"{k:>3}{numbers}{result['packed_vs_rows'][k]:10.2f}{result['packed_vs_lisa_like'][k]:13.2f}")
    print("peak MiB at K =", max(args.queries), memory)


if __name__ == "__main__":
    main()
