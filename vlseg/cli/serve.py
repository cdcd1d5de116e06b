"""`vlseg serve`."""

from __future__ import annotations

import logging
import os
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlseg.cli.parsing import Parser, whole_number
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.serving.settings import ServerSettings

EXAMPLES = """examples:
  vlseg serve                                        (the embedded model on http://127.0.0.1:8000)
  vlseg serve --model mugs=runs/mugs/final --model vlseg-mini
  VLSEG_API_KEY=$(openssl rand -hex 24) vlseg serve --host 0.0.0.0
  curl -F file=@photo.jpg -F query="the red mug" http://127.0.0.1:8000/v1/segment

SIGTERM and Ctrl-C stop it after what is running is done. docs/serving.md tells the rest."""

KEY_VARIABLE = "VLSEG_API_KEY"
_ALIAS = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)


def parser() -> Parser:
    """The arguments of the verb."""
    parser = Parser("serve", "Answer words about images over HTTP.", EXAMPLES)
    add = parser.add_argument
    add("--host", metavar="H", default="127.0.0.1", help="address to serve on (default 127.0.0.1: this machine only)")
    add("--port", metavar="N", default="8000", help="port (default 8000; 0: a free one, printed)")
    add("--model", metavar="[NAME=]M", action="append", help="as for segment, under a name; repeat for several models")
    add("--device", metavar="D", help="cpu, cuda, cuda:1, ...; default: the first GPU, else the CPU")
    add("--dtype", metavar="T", help="float32 (default on the CPU), bfloat16 (on a GPU), float16, int8 or nf4")
    add("--refine", metavar="R", default="none", help="none (default), vlseg, sam2, or one with =FOLDER: sharper masks")
    add("--api-key-file", metavar="FILE", help=f"keys of which clients must send one, a line each (or {KEY_VARIABLE})")
    add("--allow-anonymous", action="store_true", help="serve other machines without any key")
    add("--allow-host", metavar="NAME", action="append", default=[], help="a name that the Host header may give")
    add("--allow-urls", action="store_true", help="fetch images from public URLs named in requests")
    add("--max-pixels", metavar="N", default="50M", help="refuse larger images (default 50M)")
    add("--max-body", metavar="MB", default="32", help="refuse larger requests (default 32)")
    add("--max-queries", metavar="N", default="64", help="queries of a request (default 64)")
    add("--max-queue", metavar="N", default="64", help="images waiting or at work; beyond it 429 (default 64)")
    add("--deadline", metavar="S", default="30", help="seconds for a request, from arrival to answer (default 30)")
    add("--window", metavar="MS", default="5", help="milliseconds a call waits for others to share it (default 5)")
    add("--cache", metavar="MB", default="256", help="features kept for images that come again; 0: none (default 256)")
    add("--memory", metavar="MB", default="2048", help="bodies and pictures held at once (default 2048)")
    add("--quiet", action="store_true", help="no line a request")
    return parser


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    args = parser().parse(argv)
    # Everything that can be wrong is looked at before torch is imported and models are loaded: that takes seconds.
    keys = read_keys(args.api_key_file)
    models = name_models(args.model or [None])
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise VLSegError(
            f"{error.name} is not installed; `pip install 'vlseg[serve]'` brings what serve needs"
        ) from error
    from vlseg.systems.quiet import quiet_loading
    from vlseg.systems.refining import check_refine
    from vlseg.systems.registry import resolve

    settings = _settings(args, keys)
    settings.check()
    if not (settings.loopback or keys or args.allow_anonymous):
        raise VLSegError(
            f"--host {args.host}: lets other machines in; set keys with --api-key-file or {KEY_VARIABLE}, "
            "or say --allow-anonymous"
        )
    for source in models.values():
        resolve(source)
    check_refine(args.refine)
    with quiet_loading():
        from vlseg.segmenter import Segmenter
        from vlseg.serving.server import address_of, bind, notify, serve, warm
        from vlseg.serving.service import Service
    sock = bind(settings)
    with sock:
        segmenters = {
            name: Segmenter(source, args.device, args.dtype, refine=args.refine) for name, source in models.items()
        }
        for segmenter in segmenters.values():
            warm(segmenter)
        _log(args.quiet)

        def ready() -> None:
            print(f"vlseg: serving {', '.join(models)} on {address_of(sock)}", file=sys.stderr, flush=True)
            notify("READY=1")

        serve(Service(segmenters, settings), sock, ready)
    print("vlseg: stopped", file=sys.stderr, flush=True)
    return 0


def read_keys(file: str | None) -> tuple[str, ...]:
    """The API keys of a file and of the environment. Raises VLSegError for a file without any."""
    keys = [os.environ[KEY_VARIABLE].strip()] if os.environ.get(KEY_VARIABLE, "").strip() else []
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VLSegError(f"--api-key-file {file}: cannot be read ({error})") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise VLSegError(f"--api-key-file {file}: holds no key; write one a line")
        keys += found
    return tuple(dict.fromkeys(keys))


def name_models(given: Sequence[str | None]) -> dict[str, str | None]:
    """The names under which clients know the models -> what `Segmenter` loads. Raises VLSegError.

    NAME=M gives a name. Without one a folder is known by its last part, or by that of its run; its path is told nobody.
    """
    models: dict[str, str | None] = {}
    for source in given:
        alias = _ALIAS.fullmatch(source or "")
        if alias and not Path(source or "").exists():
            name, source = alias[1], alias[2]
        else:
            name = _public_name(source)
        if not _SAFE.fullmatch(name):
            raise VLSegError(f"--model {source}: give it a name of letters and digits, as in --model mugs={source}")
        if name in models:
            raise VLSegError(f"--model: two are called {name}; name them apart, as in --model other={source}")
        models[name] = source
    return models


def _public_name(source: str | None) -> str:
    if source is None:
        from vlseg.systems.registry import EMBEDDED

        return EMBEDDED
    path = Path(source).expanduser()
    if not path.exists():
        return source  # a known name, or org/name
    parts = [p for p in path.resolve().parts if p not in ("final", "best", "checkpoints") and not p.startswith("step-")]
    return parts[-1]


def _settings(args: Namespace, keys: tuple[str, ...]) -> ServerSettings:
    from vlseg.data.images import parse_pixels
    from vlseg.serving.settings import ServerSettings

    mega = 2**20
    return ServerSettings(
        host=args.host,
        port=whole_number("--port", 0)(args.port),
        api_keys=keys,
        hosts=tuple(args.allow_host),
        allow_urls=args.allow_urls,
        max_pixels=parse_pixels(args.max_pixels),
        max_body=whole_number("--max-body", 1)(args.max_body) * mega,
        max_queries=whole_number("--max-queries", 1)(args.max_queries),
        max_queue=whole_number("--max-queue", 1)(args.max_queue),
        deadline=whole_number("--deadline", 1)(args.deadline),
        window=whole_number("--window", 0)(args.window) / 1000,
        cache=whole_number("--cache", 0)(args.cache) * mega,
        memory=whole_number("--memory", 1)(args.memory) * mega,
    )


def _log(quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (
        ("vlseg.serving", logging.WARNING if quiet else logging.INFO),
        ("uvicorn.error", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
