"""The configuration of a training run: what `vlseg train CONFIG` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Stage:
    """Part of a run: up to step `until`, `images` pictures a step over all ranks, of one of `sizes` [height, width]."""

    until: int
    images: int
    sizes: list[list[int]]


@dataclass
class ModelSection:
    """Where the model comes from. preset: a from-scratch model by name; source: a checkpoint folder to start from.

    head: changes to the head of `source` (keys as in `VLSegConfig.head`); parts that are new start fresh.
    area: pixels to which pictures are resized at inference; default: the model's own.
    """

    preset: Literal["mini", "tiny"] | None = "mini"
    source: str | None = None
    head: dict[str, Any] = field(default_factory=dict)
    area: int | None = None


@dataclass
class DataSection:
    """Where samples come from. world: a procedural world; queries: expressions an image; seed: of its scenes."""

    world: str = "sprites"
    seed: int = 1
    queries: int = 8
    workers: int = 1
    val_seed: int = 900_001
    val_scenes: int = 100
    val_size: list[int] = field(default_factory=lambda: [256, 256])


@dataclass
class OptimSection:
    """AdamW and its schedule.

    matrix_lr: rate of the matrices, which then follow Muon (`vlseg/training/muon.py`); 0 leaves everything to AdamW.
    embedding_scale multiplies the rate of the token embeddings; decay is the share of the steps over which the rate
    falls to zero at the end.
    """

    lr: float = 1e-3
    matrix_lr: float = 0.0
    embedding_scale: float = 1.0
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    clip: float = 1.0
    warmup: int = 500
    schedule: Literal["cosine", "constant-decay", "constant"] = "cosine"
    decay: float = 0.25
    accumulate: int = 1
    ema: float = 0.999


@dataclass
class LossSection:
    """Weights of the losses; see `vlseg/losses`. `coarse` weighs the deep supervision of the head's earlier stages."""

    bce: float = 2.0
    dice: float = 1.0
    coarse: float = 0.4
    presence: float = 0.5
    target: float = 0.3
    pixel_noun: float = 0.5
    token_noun: float = 0.5
    query_noun: float = 1.0
    word_noun: float = 0.3


@dataclass
class WarmupSection:
    """Steps before the run proper in which the towers learn nouns on mosaics; see `vlseg/training/warmup.py`.

    images: mosaics a step, over all ranks. matrix_lr: as in `OptimSection`. plain: share of the steps over which
    drawings go from the artist's own to all styles; 0 for towers that know names already.
    """

    steps: int = 0
    images: int = 32
    size: list[int] = field(default_factory=lambda: [128, 128])
    lr: float = 2e-3
    matrix_lr: float = 0.0
    plain: float = 0.5


@dataclass
class TrainConfig:
    """All of a run; every key can be overridden on the command line as `section.key=value`."""

    out: str = "runs/mini"
    seed: int = 0
    steps: int = 1000
    mixed_precision: Literal["no", "bf16"] = "bf16"
    threads: int | None = None
    log_every: int = 50
    eval_every: int = 2000
    save_every: int = 500
    keep: int = 2
    export_dtype: Literal["float32", "float16"] = "float32"
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    warmup: WarmupSection = field(default_factory=WarmupSection)
    stages: list[Stage] = field(default_factory=lambda: [Stage(1_000_000_000, 16, [[128, 128]])])
    optim: OptimSection = field(default_factory=OptimSection)
    loss: LossSection = field(default_factory=LossSection)
