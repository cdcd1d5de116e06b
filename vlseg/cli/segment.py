"""`vlseg segment IMAGE QUERY [QUERY ...]`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vlseg.cli import segment_bulk
from vlseg.cli.inputs import expand
from vlseg.cli.parsing import Parser, convert, probability, whole_number
from vlseg.types import Result, VLSegError

if TYPE_CHECKING:
    from vlseg.cli.outputs import OutputFolder
    from vlseg.segmenter import Segmenter

EXAMPLES = """examples:
  vlseg segment photo.jpg "the red mug" "the dog on the left"
  vlseg segment photos/ "the car" --out masks        (go on later with the same command)
  vlseg segment 'photos/**/*.png' "the car" --json > results.jsonl
  vlseg segment photos/ --queries words.txt --out results     (a million images: shards, several processes, Ray)
  vlseg segment city.tif "the stadium" --tile --max-pixels 300M

Without --out nothing is written: a table is printed. exit code: 0 done (an absent answer is an answer),
1 an image or a query failed (each named on stderr), 2 a wrong call or input."""


def parser() -> Parser:
    """The arguments of the verb."""
    parser = Parser("segment", "Find what words say in images and give it as masks.", EXAMPLES)
    add = parser.add_argument
    add("image", metavar="IMAGE", help="a file, folder, glob or URL; in bulk also Parquet or a saved dataset")
    add("queries", metavar="QUERY", nargs="*", help="what to segment, in words")
    add("--model", metavar="M", help="vlseg-mini (default), the folder of a checkpoint, or org/name on the Hub")
    add("--out", metavar="DIR", help="write masks, overlay, SVG and JSON of every image to this folder")
    add("--json", action="store_true", help="the Result on stdout as JSON and nothing else; one a line for many images")
    add("--mode", choices=["mask", "path"], default="mask", help="mask (default), or path where the model has it")
    add("--refine", metavar="R", default="none", help="none (default), vlseg, sam2, or one with =FOLDER: sharper masks")
    add("--refine-iterations", metavar="N", help="0 to 8, of --refine vlseg; default: as many as its checkpoint says")
    add("--device", metavar="D", help="cpu, cuda, cuda:1, ...; default: the first GPU, else the CPU")
    add("--dtype", metavar="T", help="float32 (default on the CPU), bfloat16 (on a GPU), float16, int8 or nf4")
    add("--presence-threshold", metavar="P", help="score in 0..1 from which a query is found; default: the model's own")
    add("--mask-threshold", metavar="P", default="0.5", help="probability above which a pixel is inside (default 0.5)")
    add("--max-pixels", metavar="N", default="100M", help="refuse larger images (default 100M)")
    add("--tile", action="store_true", help="look at images larger than a tile in tiles too; memory stays bounded")
    add("--tile-size", metavar="PX", help="side of a tile (default 1024); with it --tile is understood")
    add("--tile-scope", choices=["whole", "any"], help="whole (default): tiles only sharpen what is "
        "found in the image as a whole; any: tiles may always add objects")  # fmt: skip
    add("--cache", metavar="DIR", help="keep what the model makes of images in this folder, for the next questions")
    add("--cache-size", metavar="GB", help="the least recently used goes beyond it (default 10)")
    add("--quiet", action="store_true", help="no table, no progress")
    segment_bulk.add_options(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    args = parser().parse(argv)
    # Everything that can be wrong is looked at before torch is imported and the model is loaded: that takes seconds.
    presence = convert(probability("--presence-threshold"), args.presence_threshold)
    mask = probability("--mask-threshold")(args.mask_threshold)
    for number, text in enumerate(args.queries, 1):
        if not text.strip():
            raise VLSegError(f"query {number} is empty: say in words what to segment")
    from vlseg.data.images import open_image, parse_pixels

    max_pixels, tiles, cache, iterations = parse_pixels(args.max_pixels), _tiles(args), _cache(args), _iterations(args)
    if segment_bulk.wanted(args):
        return segment_bulk.run(args, presence, mask, max_pixels, {**tiles, **iterations}, cache)
    if not args.queries:
        raise VLSegError("QUERY is missing: say in words what to segment, or give --queries FILE")
    sources, many = expand(args.image, args.out)
    from vlseg.cli.model_key import model_key
    from vlseg.cli.outputs import OutputFolder
    from vlseg.systems.registry import resolve

    if not many:
        try:
            open_image(sources[0], max_pixels)
        except VLSegError as error:
            raise _with_hint(error, tiles) from error
    resolve(args.model)
    out = OutputFolder(args.out) if args.out is not None else None
    if out is not None:
        out.made_by(json.dumps(model_key(args, tiles), indent=1) + "\n", new=many)
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        from vlseg.segmenter import Segmenter

        options = {"max_pixels": max_pixels, "refine": args.refine, **iterations, **tiles, **cache}
        segmenter = Segmenter(args.model, args.device, args.dtype, **options)
    segmenter.check(presence, mask, args.mode)
    return _Run(args, segmenter, out, sources, many, presence, mask).go()


def _tiles(args: Namespace) -> dict[str, Any]:
    """The options of `Segmenter` that the call's about tiles come to."""
    if not args.tile and args.tile_size is None:
        if args.tile_scope is not None:
            raise VLSegError(f"--tile-scope {args.tile_scope}: of no tiles; add --tile")
        return {}
    size = whole_number("--tile-size", 64)(args.tile_size or "1024")
    return {"tile": size, "tile_scope": args.tile_scope or "whole"}


def _iterations(args: Namespace) -> dict[str, Any]:
    """The options of `Segmenter` that the call's about the refiner's iterations come to; `--refine` is looked at."""
    from vlseg.systems.refining import check_refine

    iterations = convert(whole_number("--refine-iterations", 0), args.refine_iterations)
    if check_refine(args.refine, iterations)[0] == "none" and iterations is not None:
        raise VLSegError("--refine-iterations: of which refiner? Name it with --refine vlseg")
    return {} if iterations is None else {"refine_iterations": iterations}


def _cache(args: Namespace) -> dict[str, Any]:
    """The options of `Segmenter` that the call's about features on disk come to."""
    if args.cache is None:
        if args.cache_size is not None:
            raise VLSegError("--cache-size: of which folder? Name it with --cache")
        return {}
    if not args.cache:
        raise VLSegError("--cache is empty: name a folder")
    return {"cache": args.cache, "cache_size": whole_number("--cache-size", 1)(args.cache_size or "10") * 2**30}


def _with_hint(error: VLSegError, tiles: dict[str, Any]) -> VLSegError:
    """An error of an image that is too large names the tiles as well."""
    large = "--max-pixels" in str(error) and not tiles
    return VLSegError(f"{error}, and add --tile to keep the memory bounded") if large else error


class _Run:
    """One call over its images."""

    def __init__(
        self,
        args: Namespace,
        segmenter: Segmenter,
        out: OutputFolder | None,
        sources: list[str],
        many: bool,
        presence: float | None,
        mask: float,
    ):
        self.args, self.segmenter, self.out, self.sources, self.many = args, segmenter, out, sources, many
        self.presence, self.mask = presence, mask
        self.protocol = segmenter.protocol(presence, mask, args.mode)
        self.problems = self.skipped = 0

    def go(self) -> int:
        """All images in turn; returns the exit code."""
        from vlseg.cli.outputs import base_names

        done = 0
        try:
            for source, base in self._progress(list(zip(self.sources, base_names(self.sources), strict=True))):
                self._one(source, base)
                done += 1
        except KeyboardInterrupt as stop:
            rest = "; the same command goes on from there" if self.out and self.many else ""
            raise KeyboardInterrupt(f"interrupted after {done} of {len(self.sources)} images{rest}") from stop
        if self.skipped and not self.args.quiet:
            which = f"{self.skipped} of {len(self.sources)} images"
            self._say(f"{which} were done already in {self.args.out} (same queries and model) and were not run again")
        return 1 if self.problems else 0

    def _one(self, source: str, base: str) -> None:
        from vlseg.data.images import printable

        texts = self.args.queries
        if self.out and self.many:
            stored = self.out.finished(base, source, printable(source), texts, self.segmenter.name, self.protocol)
            if stored is not None:
                self.skipped += 1
                self._show(stored)
                return
        try:
            # The file, not a picture: of a very large one no second copy is made.
            result = self.segmenter(source, texts, self.presence, self.mask, self.args.mode)
        except VLSegError as error:
            if not self.many:
                raise
            self.problems += 1
            self._say(str(error))
            return
        if self.out:
            self.out.write(base, result)
        self._show(result)

    def _show(self, result: Result) -> None:
        from vlseg.cli.outputs import table

        if self.args.json:
            print(result.to_json(), flush=True)
        elif not self.args.quiet:
            head = f"{result.image}\n" if self.many else ""
            print(head + table(result) + ("\n" if self.many else ""), flush=True)
        for answer in result.answers:
            if answer.status == "failed":
                self.problems += 1
                text = " ".join(answer.text.split())
                shown = text if len(text) <= 60 else text[:59] + "…"
                self._say(f"{result.image}: {shown!r} failed: {answer.reason}")

    def _progress(self, items: list[tuple[str, str]]) -> Iterable[tuple[str, str]]:
        if not self.many or self.args.quiet or not sys.stderr.isatty():
            return items
        from tqdm import tqdm

        return tqdm(items, unit="image", dynamic_ncols=True)

    def _say(self, text: str) -> None:
        line = " ".join(text.splitlines())
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(f"vlseg: {line}", file=sys.stderr)  # leaves a progress bar whole
        else:
            print(f"vlseg: {line}", file=sys.stderr, flush=True)
