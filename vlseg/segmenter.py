"""`Segmenter`: what users hold. A picture and words in, a `Result` out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from vlseg.data.images import MAX_PIXELS, open_image
from vlseg.systems.base import PartialAnswer, PathSystem, System, check_queries, check_thresholds
from vlseg.systems.refining import check_refine, refined
from vlseg.systems.registry import load_system
from vlseg.types import Answer, Mode, Result, VLSegError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray

MODES = ("mask", "path")


class Segmenter:
    """Words to masks with one model.

    Args:
        model: None or "vlseg-mini" (embedded), the folder of a checkpoint, "org/name" on the Hub, or a `System`.
        device: "cpu", "cuda", "cuda:1", ...; default: the first GPU, else the CPU.
        dtype: "float32", "bfloat16" or "float16"; default: float32 on the CPU, bfloat16 on a GPU.
        max_pixels: larger images are refused.
        keep_picture: results hold their picture, so that `Result.overlay` works.
        tile: side in pixels of the tiles in which larger images are looked at, in bounded memory; None: no tiles.
        tile_scope: what tiles may add to the view of the whole; see `vlseg.systems.tiling.TiledSystem`.
        mode: of calls that name none: "mask", or "path" where the model has it.
        refine: what makes masks sharper: "none", "vlseg", "sam2", or one with "=FOLDER"; SAM 2 looks at each tile.
        refine_iterations: of the refiner "vlseg", 0..8; default: as many as its checkpoint says.
        cache: folder in which the features of images are kept, for systems that encode images; None: nowhere.
        cache_size: bytes that it may hold; the least recently used are dropped.

    Raises VLSegError, in one line, for a model that is unknown, missing or broken, a device that is not there, and a
    mode or refiner that the model does not have.
    """

    def __init__(
        self,
        model: str | Path | System | None = None,
        device: str | None = None,
        dtype: str | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        keep_picture: bool = True,
        tile: int | None = None,
        tile_scope: str = "whole",
        mode: Mode = "mask",
        refine: str = "none",
        refine_iterations: int | None = None,
        cache: str | Path | None = None,
        cache_size: int | None = None,
    ):
        check_refine(refine, refine_iterations)
        ready = model is not None and not isinstance(model, str | Path)
        self._plain: System = model if ready else load_system(model, device, dtype)  # type: ignore[assignment,arg-type]
        self._placed, self._tiles = (device, dtype), (tile, tile_scope)
        if cache is not None:
            if ready:
                raise VLSegError("cache: for models by name or folder, whose files tell them from others")
            from vlseg.systems.cached import LIMIT, cached

            self._plain = cached(self._plain, cache, model, device, dtype, LIMIT if cache_size is None else cache_size)  # type: ignore[arg-type]
        self._refined: dict[str, System] = {}
        self.mode, self.refine, self.refine_iterations = mode, refine, refine_iterations
        self.system = self._system(refine)
        if mode != "mask":
            self.check(None, 0.5)
        self.max_pixels, self.keep_picture = max_pixels, keep_picture

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.system.name

    @overload
    def __call__(
        self,
        image: Picture,
        queries: str | Sequence[str],
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode | None = None,
        refine: str | None = None,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        image: list[Picture],
        queries: str | Sequence[str] | Sequence[Sequence[str]],
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode | None = None,
        refine: str | None = None,
    ) -> list[Result]: ...

    def __call__(
        self,
        image: Any,
        queries: Any,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode | None = None,
        refine: str | None = None,
    ) -> Result | list[Result]:
        """Answer queries about an image, or about each of a list of images.

        image: path, URL, PIL image, ``(H, W, 3) uint8`` array, or a list (tuple) of these. queries: one text or a list
        of texts; for a list of images a list of such lists, or one list that is asked of every image.
        presence_threshold: score in 0..1 from which on a query counts as found; default: the model's own.
        mask_threshold: probability above which a pixel is foreground. mode: "mask", or "path" where the model has one:
        it writes a path, and the mask is its exact raster. refine: as for the class. Default of both: what was said
        there.

        Returns one `Result`, or a list of them. `seconds` leaves out the reading of files; in a batch it is the share
        of an image. Raises VLSegError for an image that cannot be read, an empty query, a threshold out of range, and
        a mode or refiner that the model does not have.
        """
        mode = self.mode if mode is None else mode
        self.check(presence_threshold, mask_threshold, mode, refine)
        system = self._system(refine)
        many = isinstance(image, list | tuple)
        rows = self._rows(image, queries) if many else [check_queries(queries)]
        opened = [open_image(source, self.max_pixels) for source in (image if many else [image])]
        extra: dict[str, Any] = {} if mode == "mask" else {"mode": mode}  # systems without paths know no mode
        start = time.perf_counter()
        answers = system.segment_batch(
            [picture for picture, _ in opened],
            rows,
            presence_threshold=presence_threshold,
            mask_threshold=mask_threshold,
            **extra,
        )
        seconds = (time.perf_counter() - start) / max(len(opened), 1)
        protocol = self.protocol(presence_threshold, mask_threshold, mode, refine)
        results = [
            self._result(picture, name, row, protocol, seconds)
            for (picture, name), row in zip(opened, answers, strict=True)
        ]
        return results if many else results[0]

    def stream(
        self,
        image: Picture,
        queries: str | Sequence[str],
        presence_threshold: float | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int | None = None,
    ) -> Iterator[PartialAnswer]:
        """Answers in path mode as they come: one at every ring that the model has written, the last of a query `done`.

        temperature: 0 writes the likeliest path, else one is drawn; the same seed draws the same one. max_tokens: of a
        path; default: the model's own limit. Raises VLSegError, at once, as a call does.
        """
        self.check(presence_threshold, 0.5, "path")
        texts = check_queries(queries)
        picture, _ = open_image(image, self.max_pixels)
        if not isinstance(self.system, PathSystem):
            raise VLSegError(f"{self.name} gives its paths only when they are whole: call it with mode='path'")
        return self.system.stream(
            picture,
            texts,
            presence_threshold=presence_threshold,
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
        )

    def check(
        self,
        presence_threshold: float | None,
        mask_threshold: float,
        mode: str | None = None,
        refine: str | None = None,
    ) -> None:
        """Raises VLSegError for settings that are wrong, or that this model cannot follow; loads the refiner."""
        check_thresholds(presence_threshold, mask_threshold)
        mode = self.mode if mode is None else mode
        if mode not in MODES:
            raise VLSegError(f"mode {mode!r}: unknown; known: {', '.join(MODES)}")
        if mode not in self._plain.modes:
            raise VLSegError(f"{self.name} has no {mode} mode; use --mode {self._plain.modes[0]}")
        if mode not in (system := self._system(refine)).modes:
            raise VLSegError(f"tiles give masks alone; leave --mode {mode} out, or use {system.modes[0]}")

    def protocol(
        self,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode | None = None,
        refine: str | None = None,
    ) -> str:
        """How answers come about, in one line; part of every `Result`."""
        system = self._system(refine)
        threshold = system.presence_threshold if presence_threshold is None else presence_threshold
        return protocol_line(system.protocol, threshold, mask_threshold, self.mode if mode is None else mode)

    def _system(self, refine: str | None) -> System:
        """What answers with that refiner, loaded when it is first asked for."""
        refine = self.refine if refine is None else refine
        if refine not in self._refined:
            # Our refiner looks at crops of the whole image, and what tiles make of an answer forgets how it came about.
            last = refine.startswith("vlseg")
            how = (refine, *self._placed, self.refine_iterations if last else None)
            system = self._plain if last else refined(self._plain, *how)
            tile, scope = self._tiles
            if tile is not None:
                from vlseg.systems.tiling import TiledSystem

                system = TiledSystem(system, tile, scope)
            self._refined[refine] = refined(system, *how) if last else system
        return self._refined[refine]

    def _rows(self, images: Sequence[Any], queries: Any) -> list[list[str]]:
        if isinstance(queries, str) or (queries and all(isinstance(q, str) for q in queries)):
            return [check_queries(queries) for _ in images]
        if len(queries) != len(images):
            raise VLSegError(f"{len(images)} images with {len(queries)} lists of queries: give one list an image")
        return [check_queries(row) for row in queries]

    def _result(self, picture: Image.Image, name: str, answers: list[Answer], protocol: str, seconds: float) -> Result:
        kept = picture if self.keep_picture else None
        return Result(name, (picture.height, picture.width), self.name, answers, protocol, seconds, kept)


def protocol_line(how: str, presence_threshold: float, mask_threshold: float, mode: Mode = "mask") -> str:
    """The `protocol` of a `Result`. how: that of the `System`."""
    if mode == "path":
        return f"{how}; found: score >= {presence_threshold:g}; path: the likeliest tokens, mask: its even-odd raster"
    level = math.log(mask_threshold / (1 - mask_threshold))
    return f"{how}; found: score >= {presence_threshold:g}; mask: p > {mask_threshold:g} (logit > {level:.4g})"
