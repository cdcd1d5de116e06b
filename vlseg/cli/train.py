"""`vlseg train CONFIG [a.b=c ...]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import vlseg.version
from vlseg.cli.parsing import Parser, convert, nearest, whole_number
from vlseg.types import VLSegError

EXAMPLES = """examples:
  vlseg train lora data.train=my.jsonl data.val=val.jsonl model=Qwen/Qwen3-VL-2B-Instruct
  vlseg train configs/train/full.yaml --launch fsdp2 --processes 8 out=runs/big
  vlseg train lora data.train=my.jsonl --dry-run"""


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    parser = Parser(
        "train",
        "Train a model. Killed at any instant, the same command goes on from the last whole checkpoint.",
        EXAMPLES,
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped config such as `lora`")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="a setting on top of the file")
    ways = "single, cpu, ddp, fsdp2, zero2, zero3, or a file that `accelerate config` has written"
    parser.add_argument("--launch", metavar="NAME", help=f"how processes share the run: {ways}")
    parser.add_argument("--processes", metavar="N", help="processes on this machine (default: what --launch says)")
    parser.add_argument("--dry-run", action="store_true", help="tell parameters, memory, steps and time, and stop")
    args = parser.parse(argv)
    from vlseg.config import load
    from vlseg.training.config import TrainConfig

    # Settings are read before torch is imported, so that a typing error is told at once.
    file = find_config(args.config)
    config = load(TrainConfig, file, args.overrides)
    processes = convert(whole_number("--processes", 1), args.processes)
    name = args.launch or (_usual() if processes else "single")
    how = find_launch(name)
    from vlseg.training.launch import launch, run_rank, sharding_of
    from vlseg.training.refusals import refuse_all

    sharding, ranks = sharding_of(how, processes)
    refuse_all(config, sharding)
    if args.dry_run:
        from vlseg.systems.quiet import quiet_loading

        with quiet_loading():
            from vlseg.training.dry_run import dry_run

        print(dry_run(config, sharding, ranks))
        return 0
    if args.launch is None and processes is None:
        return run_rank(config)
    return launch(config, [str(file), *args.overrides], how, processes)


def _usual() -> str:
    """What `--processes N` alone means: a process a GPU, or N on the CPUs."""
    import torch

    return "ddp" if torch.cuda.is_available() else "cpu"


def config_folders() -> list[Path]:
    """Where shipped configs lie: inside an installed package, or beside it in a checkout."""
    package = Path(vlseg.version.__file__).resolve().parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def find_config(name: str) -> Path:
    """The file of that path, or the shipped config of that name. Raises VLSegError naming the nearest."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {key: file for key, file in _shipped().items() if not key.startswith("accelerate/")}
    stem = name.removeprefix("configs/").removesuffix(".yaml").removesuffix(".yml")
    for key in (stem, f"train/{stem}"):
        if key in shipped:
            return shipped[key]
    known = sorted(key.removeprefix("train/") for key in shipped)
    hint = nearest(stem.removeprefix("train/"), known) or f"; shipped are {', '.join(known) or 'none'}"
    raise VLSegError(f"{name}: no such config{hint}")


def find_launch(name: str) -> Path:
    """The accelerate config of that path, or the shipped one of that name. Raises VLSegError naming the nearest."""
    if Path(name).is_file():
        return Path(name)
    shipped = _shipped()
    if f"accelerate/{name}" in shipped:
        return shipped[f"accelerate/{name}"]
    known = sorted(key.removeprefix("accelerate/") for key in shipped if key.startswith("accelerate/"))
    hint = nearest(name, known) or f"; there are {', '.join(known)}, or give the path of an accelerate config"
    raise VLSegError(f"--launch {name}: no such way to launch{hint}")


def _shipped() -> dict[str, Path]:
    """Shipped configs by their path below the folder, without the suffix."""
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for folder in reversed(config_folders())
        for file in folder.rglob("*.yaml")
    }
