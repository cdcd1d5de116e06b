"""`vlseg demo`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from vlseg.cli.parsing import Parser, whole_number
from vlseg.types import VLSegError

EXAMPLES = """examples:
  vlseg demo                                         (the embedded model on http://127.0.0.1:7860)
  vlseg demo --model runs/mugs/final --model vlseg-mini

The page is for this machine alone unless --host or --share say otherwise; then it takes only the models named here.
docs/demo.md tells the rest."""


def parser() -> Parser:
    """The arguments of the verb."""
    parser = Parser("demo", "A page in the browser on which words become masks.", EXAMPLES)
    add = parser.add_argument
    add("--host", metavar="H", default="127.0.0.1", help="address to serve on (default 127.0.0.1: this machine only)")
    add("--port", metavar="N", default="7860", help="port (default 7860; 0: a free one, printed)")
    add("--model", metavar="M", action="append", default=[], help="as for segment; repeat for more to choose from")
    add("--device", metavar="D", help="cpu, cuda, cuda:1, ...; default: the first GPU, else the CPU")
    add("--dtype", metavar="T", help="float32 (default on the CPU), bfloat16 (on a GPU), float16, int8 or nf4")
    add("--max-pixels", metavar="N", default="25M", help="refuse larger pictures (default 25M)")
    add("--allow-host", metavar="NAME", action="append", default=[], help="a further name for the page, behind a proxy")
    add("--share", action="store_true", help="also give it a public address through Gradio's servers; needs a network")
    return parser


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    args = parser().parse(argv)
    # Everything that can be wrong is looked at before gradio and torch are imported: that takes seconds.
    port = whole_number("--port", 0)(args.port)
    from vlseg.data.images import parse_pixels
    from vlseg.systems.registry import resolve

    max_pixels = parse_pixels(args.max_pixels)
    for name in args.model or [None]:
        resolve(name)
    demo = package()
    if PathFinder.find_spec("gradio") is None:
        raise VLSegError("gradio is not installed; `pip install 'vlseg[demo]'` brings what demo needs")
    launch = import_module(f"{demo.__name__}.launch")
    launch.serve(
        launch.Settings(
            args.host,
            port,
            tuple(args.model),
            args.device,
            args.dtype,
            max_pixels,
            tuple(args.allow_host),
            args.share,
        )
    )
    return 0


def package() -> ModuleType:
    """`vlseg.demo`: part of an installed package; in a checkout it lies beside it, in demo/. Raises VLSegError."""
    name = "vlseg.demo"
    if name in sys.modules:
        return sys.modules[name]
    inside = Path(__file__).resolve().parent.parent
    for folder in (inside / "demo", inside.parent / "demo"):
        file = folder / "__init__.py"
        if not file.is_file():
            continue
        spec = spec_from_file_location(name, file, submodule_search_locations=[str(folder)])
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    raise VLSegError("the demo is not in this installation; install vlseg from its wheel, or run it in a checkout")
