"""`vlseg train CONFIG [a.b=c ...]`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import vlseg.version
from vlseg.cli.app import SIGINT_CODE
from vlseg.cli.parsing import Parser, nearest
from vlseg.types import VLSegError


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    parser = Parser(
        "train",
        "Train a model. Killed at any instant, the same command goes on from the last whole checkpoint.",
        "example: vlseg train configs/mini.yaml steps=2000 optim.lr=5e-4 out=runs/short",
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped config such as `mini`")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="a setting on top of the file")
    args = parser.parse(argv)
    from vlseg.config import load
    from vlseg.training.config import TrainConfig

    # Settings are read before torch is imported, so that a typing error is told at once.
    config = load(TrainConfig, find_config(args.config), args.overrides)
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        from vlseg.training.loop import train

    try:
        train(config)
    except KeyboardInterrupt:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise  # before the loop took the signal over, nobody has said anything yet
        return SIGINT_CODE
    return 0


def config_folders() -> list[Path]:
    """Where shipped configs lie: inside an installed package, or beside it in a checkout."""
    package = Path(vlseg.version.__file__).resolve().parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def find_config(name: str) -> Path:
    """The file of that path, or the shipped config of that name. Raises VLSegError naming the nearest."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.relative_to(folder).with_suffix("").as_posix(): file
               for folder in reversed(config_folders()) for file in folder.rglob("*.yaml")}  # fmt: skip
    stem = name.removeprefix("configs/").removesuffix(".yaml").removesuffix(".yml")
    if stem in shipped:
        return shipped[stem]
    hint = nearest(stem, list(shipped)) or f"; shipped are {', '.join(sorted(shipped)) or 'none'}"
    raise VLSegError(f"{name}: no such config{hint}")
