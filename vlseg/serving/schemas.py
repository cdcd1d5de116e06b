"""The bodies of requests and responses: what is checked, and what OpenAPI tells."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
OpenShare = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Strict(BaseModel):
    """Unknown fields and numbers written as text are errors, not guesses."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Options(Strict):
    """How to answer; common to every request."""

    model: str | None = Field(None, description="one of GET /v1/models; the first of them where left out")
    presence_threshold: Share | None = Field(
        None, description="score from which on a query counts as found; the model's own calibrated one where left out"
    )
    mask_threshold: OpenShare = Field(0.5, description="probability above which a pixel is inside; 0.5 is logit 0")
    mode: Literal["mask", "path"] = Field("mask", description="masks, or paths where the model draws them itself")


class ImageFields(Strict):
    """An image, as base64 or (where the server allows it) as a URL, and what to look for in it."""

    image: str = Field("", description="the image file in base64; exactly one of image and url is given")
    url: str = Field("", description="http or https; only where the server was started with --allow-urls")
    name: str | None = Field(None, max_length=255, description="comes back as `image` of the result")
    queries: list[str] = Field(description="what to segment, in words; each is answered on its own")


class SegmentRequest(ImageFields, Options):
    """POST /v1/segment as JSON."""


class BatchRequest(Options):
    """POST /v1/segment/batch."""

    items: list[ImageFields] = Field(description="images, each with its own queries")


class Run(BaseModel):
    """A COCO run-length encoded mask."""

    size: tuple[int, int] = Field(description="[height, width]")
    counts: str = Field(description="compressed runs, as of pycocotools")


class CoarseOut(BaseModel):
    """What a refined region was before."""

    stage: Literal["mask", "path"] = Field(description="what made it")
    rle: Run
    path: str


class SegmentOut(BaseModel):
    """One region."""

    score: float
    bbox: tuple[float, float, float, float] = Field(description="COCO [x, y, width, height] in pixels")
    area: int = Field(description="pixels")
    rle: Run
    path: str = Field(description="SVG path data in pixels of the image, even-odd; drawn, it gives the mask back")
    stage: Literal["mask", "path", "refined"] = Field(description="what made the mask")
    coarse: CoarseOut | None = Field(default=None, description="where stage is refined: what the refiner was given")


class AnswerOut(BaseModel):
    """What one query came to."""

    text: str
    status: Literal["found", "absent", "failed"]
    score: float | None = Field(description="calibrated probability that the words have a referent in the image")
    reason: str | None = Field(description="why the status is failed")
    segments: list[SegmentOut]


class ResultOut(BaseModel):
    """All answers about one image, in the order of the queries."""

    image: str
    size: tuple[int, int] = Field(description="[height, width] of the upright image")
    model: str
    protocol: str = Field(description="how answers come about, thresholds included")
    seconds: float = Field(description="time in the model; the share of this image where a call held several")
    answers: list[AnswerOut]


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    request_id: str


class ErrorOut(BaseModel):
    """The body of every response that is no success."""

    error: ErrorDetail


class FailedItem(BaseModel):
    """An image of a batch that could not be answered; the others are."""

    image: str
    error: ErrorDetail


class BatchOut(BaseModel):
    """One entry an item, in order."""

    results: list[ResultOut | FailedItem]


class ModelOut(BaseModel):
    """A model that can be named in `model`."""

    name: str
    default: bool
    modes: list[str]
    presence_threshold: float
    protocol: str


class LimitsOut(BaseModel):
    """What a request may hold."""

    body_bytes: int
    pixels: int
    queries: int
    query_chars: int
    images: int
    urls: bool


class ModelsOut(BaseModel):
    """GET /v1/models."""

    models: list[ModelOut]
    limits: LimitsOut


class HealthOut(BaseModel):
    """GET /healthz and /readyz."""

    status: Literal["ok"]
