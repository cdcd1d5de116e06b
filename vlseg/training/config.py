"""The configuration of a training run: what `vlseg train CONFIG` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Stage:
    """Part of a run: up to step `until`, `images` pictures a step over all ranks, of one of `sizes` [height, width].

    resize: whether the model sees them at its own size (`model.area`), as it does at inference, or as they are drawn.
    """

    until: int
    images: int
    sizes: list[list[int]]
    resize: bool = False


@dataclass
class ModelSection:
    """Where the model comes from. preset: a from-scratch model by name, where no source is given.

    source: "vlseg-mini", a checkpoint folder or "org/name" of vlseg, or one of a vision-language model, which then gets
    a pixel encoder and a mask head of its own (`vlseg/models/build.py`).
    head: changes to the head of `source` (keys as in `VLSegConfig.head`); parts that are new start fresh.
    area: pixels to which pictures are resized, in training and at inference; default: the model's own.
    build: keyword arguments of `from_vlm`, such as `pixel_encoder`, `instruction`, `revision`.
    base: how frozen weights are held; "nf4" and "int8" hold the language model's layers in 4 and 8 bits.
    checkpointing: recompute activations in the backward pass. compile: torch.compile of the repeated blocks.
    """

    preset: Literal["mini", "tiny"] | None = "mini"
    source: str | None = field(default=None, metadata={"main": True})
    head: dict[str, Any] = field(default_factory=dict)
    area: int | None = None
    build: dict[str, Any] = field(default_factory=dict)
    base: Literal["float32", "bfloat16", "nf4", "int8"] = "float32"
    checkpointing: bool = False
    compile: bool = False


@dataclass
class Part:
    """One data set of a mixture: its spec as in `vlseg.data.registry.open_dataset`, and its share of the steps."""

    data: str
    split: str = "train"
    weight: float = 1.0


@dataclass
class DataSection:
    """Where samples come from: a data set (`train`), several (`mix`), or, where neither is given, a procedural world.

    train, mix, val: specs as `vlseg data` takes them (`my.jsonl`, `refcoco`, a folder). split, val_split: where the
    spec says none. root: where named data sets lie. images: pictures a step over all ranks. epochs: instead of `steps`.
    val_limit: pictures of `val` that a validation looks at. leaks: whether pictures of any val or test split of the
    RefCOCO family are taken out of the training data.
    queries: expressions an image at most. workers: processes that load data, of each rank.
    world, seed, val_seed, val_scenes, val_size: the world, the seeds of its scenes, and its validation.
    """

    train: str | None = field(default=None, metadata={"main": True})
    split: str = "train"
    mix: list[Part] = field(default_factory=list)
    val: str | None = None
    val_split: str = "val"
    val_limit: int | None = 200
    root: str | None = None
    images: int = 8
    epochs: float | None = None
    leaks: Literal["drop", "keep"] = "drop"
    world: Literal["sprites"] | None = "sprites"
    seed: int = 1
    queries: int = 8
    workers: int = 1
    val_seed: int = 900_001
    val_scenes: int = 100
    val_size: list[int] = field(default_factory=lambda: [256, 256])

    @property
    def parts(self) -> list[Part]:
        """The data sets to train on; none where the world is meant."""
        return [Part(self.train, self.split)] if self.train else self.mix

    def __post_init__(self) -> None:
        if self.train and self.mix:
            raise ValueError("give data.train or data.mix, not both")
        if self.images < 1 or self.queries < 1:
            raise ValueError("data.images and data.queries must be at least 1")


Place = Literal["decoder", "vision", "pixel"]
Sharding = Literal["none", "fsdp2", "zero2", "zero3"]


@dataclass
class AdapterSection:
    """Low-rank adapters by peft; everything else of the linear layers stays as it is.

    kind: "lora" (arXiv 2106.09685) or "adalora" (arXiv 2303.10512). rank: of every adapter, for AdaLoRA the average at
    the end; alpha: scale as in peft. where: linear layers of the language model's decoder, of its vision tower, of the
    pixel encoder (a tower that starts from random weights is trained whole).
    leave_out: parts of names of layers that get no adapter.
    whole: parts that are trained whole: names of modules of `VLSegModel`. tokens: train the rows of [SEG] and [REJ].
    patience: steps after which an adapter that has never had a gradient stops the run; 0: never.
    AdaLoRA only. start_rank: of every adapter at the start; grow, settle: shares of the run before the first pruning
    and after the last; every: steps from pruning to pruning; orthogonal: weight of the orthogonality term.
    """

    kind: Literal["none", "lora", "adalora"] = field(default="none", metadata={"main": True})
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    where: list[Place] = field(default_factory=lambda: ["decoder", "vision", "pixel"])
    leave_out: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=lambda: ["mask_head", "pixel_decoder"])
    tokens: bool = True
    patience: int = 20
    start_rank: int = 24
    grow: float = 0.1
    settle: float = 0.3
    every: int = 10
    orthogonal: float = 0.1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"adapter.rank = {self.rank}, must be at least 1")
        if self.kind == "adalora" and self.start_rank <= self.rank:
            raise ValueError(
                f"adapter.start_rank = {self.start_rank} must be above adapter.rank = {self.rank}: AdaLoRA starts with "
                "more ranks than it keeps"
            )
        if self.grow < 0 or self.settle < 0 or self.grow + self.settle >= 1:
            raise ValueError("adapter.grow and adapter.settle are shares of the run, together below 1")


@dataclass
class QatSection:
    """Quantisation-aware training by torchao: the forward pass sees rounded weights, the optimizer exact ones.

    kind: "int8" or "int4" weights, or "int8-int4": 4-bit weights and activations rounded to 8 bits as they come.
    group: weights that share a scale (4 bits only; 8-bit weights have a scale a row). where: as in `AdapterSection`.
    measure: at the end quantise for good, and tell bytes, seconds, memory and the IoU lost (`qat.json`).
    """

    kind: Literal["none", "int8", "int4", "int8-int4"] = field(default="none", metadata={"main": True})
    group: int = 32
    where: list[Place] = field(default_factory=lambda: ["decoder"])
    measure: bool = True


@dataclass
class PathSection:
    """Path mode: the model also learns to write masks as paths of tokens (`vlseg/models/path_head.py`).

    grid, box_bins, joint, curves: of the codec (`vlseg/masks/path_codec.py`). max_tokens: of the longest path, in
    training and after it. box: how answers begin: "written", all of a path is the model's; "mask", with the box of the
    query's mask. What is left null stays as the model has it; a model without path mode gets the codec's own defaults,
    128 tokens and "written". The codec of a model that has path mode cannot be changed.
    price: IoU that one more token of a target must bring. effort: of the search for targets. share: of the queries that
    have a target, those that learn a path in a step; a path makes its query twice as long.
    A model that has path mode goes on learning it only where this is on; the log says so where it is off.
    """

    on: bool = False
    grid: int | None = None
    box_bins: int | None = None
    joint: bool | None = None
    curves: bool | None = None
    max_tokens: int | None = None
    box: Literal["written", "mask"] | None = None
    price: float = 1e-3
    effort: Literal["fast", "thorough"] = "fast"
    share: float = 1.0


@dataclass
class ReinforceSection:
    """Reinforcement of path mode on paths that the model draws (`vlseg/training/reinforce.py`).

    Needs a model that writes paths already. Of an image take part at most `queries` that have a target; the model draws
    `group` paths for each, at `temperature`. A path's reward is IoU + boundary x boundary IoU - cost x tokens, found by
    so many worker processes (0: by the run's own). divergence: weight of the KL divergence from the model that the run
    started from. updates: steps on each batch of paths; clip: how far the ratio of probabilities may move in them.
    supervised: weight of the supervised losses (`loss`) of the same batch; 0: none.
    """

    on: bool = False
    queries: int = 4
    group: int = 8
    temperature: float = 1.0
    boundary: float = 0.5
    cost: float = 1e-3
    divergence: float = 0.02
    updates: int = 1
    clip: float = 0.2
    supervised: float = 0.1
    workers: int = 0

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"reinforce.group = {self.group}: a path is judged by its group, which needs 2 at least")
        if self.queries < 1 or self.updates < 1:
            raise ValueError("reinforce.queries and reinforce.updates must be at least 1")
        if self.temperature <= 0:
            raise ValueError(f"reinforce.temperature = {self.temperature}: must be above 0")


@dataclass
class ClosedSection:
    """A network for a closed set of classes instead of the native model; see `vlseg/systems/closed_net.py`.

    architecture: unet, unet++, deeplabv3+, fpn, segformer, dpt, deeplabv3, fcn or segnet, which give every pixel a
    class, or mask-rcnn, which finds instances (`vlseg/systems/instance_net.py`); null: the native model.
    encoder: by its name in segmentation-models-pytorch, "tu-..." any of timm; for torchvision the builder, for
    mask-rcnn also a ResNet ("resnet18"); null: the usual one. weights: of the encoder, as its library calls them
    ("imagenet"), for mask-rcnn also a file; null: random. classes: their names, the
    background's first, where there is one; empty: "background" and every query of the training data. image: entries of
    `ClosedNet.image`, such as area and multiple. options: further ones of the network's class.
    cross_entropy, dice: weights of the losses; mask-rcnn has losses of its own.
    """

    architecture: str | None = field(default=None, metadata={"main": True})
    encoder: str | None = None
    weights: str | None = None
    classes: list[str] = field(default_factory=list)
    image: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    cross_entropy: float = 1.0
    dice: float = 1.0


@dataclass
class OptimSection:
    """AdamW and its schedule.

    matrix_lr: rate of the matrices, which then follow Muon (`vlseg/training/muon.py`); 0 leaves everything to AdamW.
    embedding_scale multiplies the rate of the token embeddings, head_scale that of mask head and pixel decoder; decay
    is the share of the steps over which the rate falls to zero at the end. ema: decay of the averaged weights that are
    validated and exported; 0: no average.
    """

    lr: float = 1e-3
    matrix_lr: float = 0.0
    embedding_scale: float = 1.0
    head_scale: float = 1.0
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
    """Weights of the losses; see `vlseg/losses`. `coarse` weighs the deep supervision of the head's earlier stages.

    target_form: "ours", the contrast of every query with the regions of its image (`target`) and how active it is in
    distractors, compared with its target (`stray`); "talent", the published form (`affinity`, `sentence`, with its
    weights); or "none".
    slots: masks and scores of the segments of an answer, for a model with `head.slots` > 1. path: tokens of the paths,
    where the run trains them (`paths`); path_spread: over how many places and bins around the right one their targets
    are spread (standard deviation), 0: not at all. edge: masks along the outlines of targets. ground: where in the
    image the language model says that the target is, for a model with `head.ground`. group: which pixels belong to one
    thing, for a model with `head.group`.
    """

    bce: float = 2.0
    dice: float = 1.0
    edge: float = 0.0
    coarse: float = 0.4
    presence: float = 0.5
    target_form: Literal["none", "talent", "ours"] = "ours"
    target: float = 0.3
    stray: float = 0.0
    affinity: float = 0.1
    sentence: float = 0.01
    slots: float = 1.0
    path: float = 1.0
    path_spread: float = 0.0
    ground: float = 1.0
    group: float = 1.0
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
    """All of a run; every key can be overridden on the command line as `section.key=value`.

    first: settings of a run of its own, in the folder `first` of `out`, on top of all others here; this run then starts
    from what the first came to. grid_every: steps from one picture of validation answers to the next; 0: none.
    trackers: besides TensorBoard those of Accelerate, such as trackio and wandb.
    """

    out: str = "runs/mini"
    seed: int = 0
    steps: int = 1000
    mixed_precision: Literal["no", "bf16"] = "bf16"
    threads: int | None = None
    log_every: int = 50
    eval_every: int = 2000
    save_every: int = 500
    keep: int = 2
    grid_every: int = 0
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    warmup: WarmupSection = field(default_factory=WarmupSection)
    stages: list[Stage] = field(default_factory=lambda: [Stage(1_000_000_000, 16, [[128, 128]])])
    optim: OptimSection = field(default_factory=OptimSection)
    loss: LossSection = field(default_factory=LossSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    qat: QatSection = field(default_factory=QatSection)
    paths: PathSection = field(default_factory=PathSection)
    reinforce: ReinforceSection = field(default_factory=ReinforceSection)
    closed: ClosedSection = field(default_factory=ClosedSection)
    first: dict[str, Any] = field(default_factory=dict)
