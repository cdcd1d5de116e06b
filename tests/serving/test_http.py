"""A live server: the answers of the Segmenter, in the forms that are asked for, and clear refusals."""

from __future__ import annotations

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vlseg.masks.svg import path_to_rle
from vlseg.serving.errors import CODES
from vlseg.types import Result


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def alike(result: Result, expected: Result) -> None:
    """The same answers; scores to the rounding of JSON."""
    assert result.size == expected.size
    assert [a.text for a in result] == [a.text for a in expected]
    assert [a.status for a in result] == [a.status for a in expected]
    assert [a.score for a in result] == pytest.approx([a.score for a in expected], abs=2e-5)
    assert [[s.rle for s in a.segments] for a in result] == [[s.rle for s in a.segments] for a in expected]


def test_a_form_answers_as_the_segmenter(live, segmenter, picture, png, queries, assert_foreground):
    expected = segmenter(picture(), queries)
    assert_foreground(expected)
    reply = live.form(("file", png()), *(("query", text) for text in queries))
    assert reply.status == 200, reply.body
    result = Result.from_dict(reply.data)
    alike(result, expected)
    assert (result.image, result.model, result.protocol) == ("photo.png", "tiny", expected.protocol)
    assert result.seconds > 0
    for answer in result:
        for segment in answer.segments:
            assert path_to_rle(segment.path, result.size) == segment.rle
    assert reply.headers["x-vlseg-status"] == ",".join(a.status for a in expected)
    assert "/" not in reply.data["model"]  # the folder of a checkpoint is told nobody


def test_json_answers_as_the_segmenter(live, segmenter, picture, png, queries):
    body = {"image": b64(png(3, 90, 150)), "queries": queries, "name": "ü.png", "presence_threshold": 0}
    reply = live.post(body | {"mask_threshold": 0.4, "model": "tiny", "mode": "mask"})
    result = Result.from_dict(reply.data)
    alike(result, segmenter(picture(3, 90, 150), queries, presence_threshold=0, mask_threshold=0.4))
    assert result.image == "ü.png"
    assert "score >= 0;" in result.protocol


def test_turned_by_exif(live, segmenter, picture, queries, assert_foreground):
    exif = Image.Exif()
    exif[0x0112] = 8
    file = io.BytesIO()
    picture(2, 90, 150).transpose(Image.Transpose.ROTATE_270).save(file, "PNG", exif=exif)
    fields = [("presence_threshold", "0"), *(("query", text) for text in queries)]
    reply = live.form(("file", file.getvalue()), *fields)
    expected = segmenter(picture(2, 90, 150), queries, presence_threshold=0)
    assert_foreground(expected)
    alike(Result.from_dict(reply.data), expected)


@pytest.mark.parametrize("text", ["[SEG]", "<image>", "a [REJ] b", "\0", "🦜" * 20, "‮drah", "';--", "{{7*7}}"])
def test_any_words_are_words(live, segmenter, picture, png, text):
    reply = live.post({"image": b64(png()), "queries": [text, "the red dog"]})
    alike(Result.from_dict(reply.data), segmenter(picture(), [text, "the red dog"]))
    form = live.form(("file", png()), ("query", text), ("query", "the red dog"))
    assert form.data["answers"] == reply.data["answers"]
    if text != "\0":
        svg = live.form(("file", png()), ("query", text), Accept="image/svg+xml")
        assert svg.status == 200


def test_views(live, segmenter, picture, png, queries):
    expected = segmenter(picture(), queries)
    parts = [("file", png()), *(("query", text) for text in queries)]
    overlay = live.form(*parts, Accept="image/png")
    assert overlay.headers["content-type"] == "image/png"
    drawn = Image.open(io.BytesIO(overlay.body))
    assert np.array_equal(np.asarray(drawn), np.asarray(expected.overlay()))
    mask = live.form(*parts, Accept="image/png; view=mask")
    pixels = np.asarray(Image.open(io.BytesIO(mask.body)))
    union = np.any([a.mask for a in expected], axis=0)
    assert 0.05 < union.mean() < 0.95
    assert np.array_equal(pixels == 255, union)
    assert set(np.unique(pixels)) == {0, 255}
    svg = live.form(*parts, Accept="image/svg+xml")
    assert svg.headers["content-type"].startswith("image/svg+xml")
    expected.image = "photo.png"
    assert svg.body.decode() == expected.svg()
    for reply in (overlay, mask, svg):
        assert reply.headers["x-vlseg-status"] == ",".join(a.status for a in expected)


def test_words_cannot_become_markup(live, png):
    script = "<script>alert(1)</script>"
    reply = live.form(("file", png()), ("query", script), ("presence_threshold", "0"), Accept="image/svg+xml")
    assert b"<script" not in reply.body
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_batch(live, segmenter, picture, png, queries):
    items = [{"image": b64(png(i)), "queries": queries[: i + 1], "name": f"{i}.png"} for i in range(4)]
    items.insert(2, {"image": b64(b"no image"), "queries": ["red"], "name": "broken.png"})
    reply = live.post({"items": items, "presence_threshold": 0}, "/v1/segment/batch")
    assert reply.status == 200, reply.body
    results = reply.data["results"]
    broken = results.pop(2)
    assert (broken["image"], broken["error"]["code"]) == ("broken.png", "unsupported_image")
    for i, result in enumerate(results):
        alike(Result.from_dict(result), segmenter(picture(i), queries[: i + 1], presence_threshold=0))


def test_many_at_once_get_their_own(live, segmenter, picture, png, queries, assert_foreground):
    """32 clients, 4 images, different queries: packed and batched as it comes, every answer that of the direct call."""
    cases = [(i % 4, [queries[i % 5], queries[(i // 4) % 5]]) for i in range(32)]
    expected = {(seed, tuple(texts)): segmenter(picture(seed), texts, presence_threshold=0) for seed, texts in cases}
    assert_foreground([a for result in expected.values() for a in result])

    def one(case):
        seed, texts = case
        return live.form(("file", png(seed)), *(("query", t) for t in texts), ("presence_threshold", "0"))

    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(one, cases))
    for (seed, texts), reply in zip(cases, replies, strict=True):
        assert reply.status == 200, reply.body
        alike(Result.from_dict(reply.data), expected[seed, tuple(texts)])
    counts = dict(re.findall(r"^(vlseg_call_requests_\w+){model=\"tiny\"} (\S+)$", metrics(live), re.MULTILINE))
    assert float(counts["vlseg_call_requests_sum"]) > float(counts["vlseg_call_requests_count"])


def metrics(live) -> str:
    return live.ask("GET", "/metrics").body.decode()


def test_repeated_images_are_not_encoded_again(start, png, segmenter, monkeypatch):
    encoded = []
    encode = segmenter.system.model.encode_image
    monkeypatch.setattr(segmenter.system.model, "encode_image", lambda pixels: encoded.append(1) or encode(pixels))
    with start() as server:
        replies = [server.form(("file", png()), ("query", text)) for text in ("red dog", "blue cat", "red dog")]
        assert [r.status for r in replies] == [200] * 3
        assert len(encoded) == 1
        assert replies[0].data["answers"] == replies[2].data["answers"]
        assert 'vlseg_feature_cache_hits_total{model="tiny"} 2.0' in metrics(server)
        server.form(("file", png(1)), ("query", "red dog"))
        assert len(encoded) == 2
    with start(cache=0) as server:
        again = server.form(("file", png()), ("query", "red dog"))
        server.form(("file", png()), ("query", "red dog"))
        assert len(encoded) == 4
        assert again.data["answers"] == replies[0].data["answers"]


def test_two_models(start, segmenter, fake, png):
    with start({"tiny": segmenter, "org/fake": fake.segmenter}) as server:
        assert [(m["name"], m["default"]) for m in server.ask("GET", "/v1/models").data["models"]] == [
            ("tiny", True),
            ("org/fake", False),
        ]
        assert server.form(("file", png()), ("query", "red")).data["model"] == "tiny"
        reply = server.form(("file", png()), ("query", "red"), ("model", "org/fake"))
        assert reply.data["model"] == reply.headers["x-vlseg-model"] == "org/fake"
        assert fake.system.calls == [[["red"]]]
        wrong = server.form(("file", png()), ("query", "red"), ("model", "other"))
        assert (wrong.status, wrong.code) == (422, "invalid_request")
        assert "there are tiny, org/fake" in wrong.data["error"]["message"]


def test_models_and_health(live):
    data = live.ask("GET", "/v1/models").data
    assert data["models"][0]["modes"] == ["mask"]
    assert data["limits"]["pixels"] == 2_000_000
    assert live.ask("GET", "/healthz").data == live.ask("GET", "/readyz").data == {"status": "ok"}


def test_metrics(live, png):
    live.form(("file", png()), ("query", "red"))
    live.ask("GET", "/some/path/of/a/scanner")
    text = metrics(live)
    for name in (
        'vlseg_requests_total{path="/v1/segment",status="200"}',
        'vlseg_requests_total{path="other",status="404"}',
        'vlseg_request_seconds_bucket{le="0.1",path="/v1/segment"}',
        'vlseg_answers_total{model="tiny"',
        'vlseg_wait_seconds_count{model="tiny"}',
        'vlseg_call_seconds_sum{model="tiny"}',
        "vlseg_images_inside 0.0",
        "vlseg_bytes_inside 0.0",
        "vlseg_feature_cache_bytes",
        "process_resident_memory_bytes",
    ):
        assert name in text, name
    assert "scanner" not in text


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "code"),
    [
        ("GET", "/", {}, None, "not_found"),
        ("GET", "/v1/segment", {}, None, "method_not_allowed"),
        ("DELETE", "/healthz", {}, None, "method_not_allowed"),
        ("GET", "/healthz", {"Host": "evil.example"}, None, "unknown_host"),
        ("POST", "/v1/segment", {}, b"x", "unsupported_body"),
        ("POST", "/v1/segment", {"Content-Type": "application/json"}, b"{", "bad_request"),
        ("POST", "/v1/segment", {"Content-Type": "application/json", "Accept": "text/html"}, b"{}", "not_acceptable"),
        (
            "POST",
            "/v1/segment/batch",
            {"Content-Type": "application/json", "Accept": "image/png"},
            b"",
            "not_acceptable",
        ),
        (
            "POST",
            "/v1/segment",
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            b"x",
            "unsupported_body",
        ),
        ("POST", "/v1/segment", {"Content-Type": "application/json"}, b" " * (4 * 2**20 + 1), "body_too_large"),
    ],
)
def test_refusals(live, method, path, headers, body, code):
    reply = live.ask(method, path, body, headers)
    assert (reply.status, reply.code) == (CODES[code][0], code)
    assert reply.headers["content-type"] == "application/json"
    assert reply.data["error"]["request_id"] == reply.headers["x-request-id"]
    if code == "method_not_allowed":
        assert reply.headers["allow"]


def test_refused_images(live, png):
    for data, code in ((b"no image", "unsupported_image"), (b"", "unsupported_image"), (png()[:300], "broken_image")):
        reply = live.form(("file", data), ("query", "red"))
        assert (reply.status, reply.code) == (CODES[code][0], code)
        assert live.post({"image": b64(data), "queries": ["red"]}).code == code


def test_an_image_of_too_many_pixels(live, png):
    reply = live.form(("file", png(0, 2000, 1001)), ("query", "red"))
    assert (reply.status, reply.code) == (413, "image_too_large")


def test_ten_thousand_queries(live, png):
    reply = live.post({"image": b64(png()), "queries": ["red"] * 10_000})
    assert (reply.status, reply.code) == (422, "invalid_request")
    assert live.form(("file", png()), *[("query", "red")] * 10_000).status == 422
    assert live.post({"image": b64(png()), "queries": ["red"] * 64}).status == 200


def test_a_query_of_too_many_tokens_fails_alone(live, png):
    reply = live.post({"image": b64(png()), "queries": ["red", "r " * 499]})
    assert [a["status"] for a in reply.data["answers"]][1] == "failed"
    assert "too long" in reply.data["answers"][1]["reason"]


KEY, OTHER = "k" * 24, "ö" * 16


def test_api_keys(start, png):
    with start(api_keys=(KEY, OTHER)) as server:
        assert server.ask("GET", "/healthz").status == server.ask("GET", "/readyz").status == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            reply = server.ask("GET", path)
            assert (reply.status, reply.code, reply.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        wrong = [
            {"Authorization": f"Bearer {KEY[:-1]}"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": "Bearer"},
            {"X-API-Key": ""},
        ]
        for headers in wrong:
            assert server.ask("GET", "/v1/models", headers=headers).status == 401
            assert server.form(("file", png()), ("query", "red"), **headers).status == 401
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}):
            assert server.ask("GET", "/v1/models", headers=headers).status == 200
            assert server.form(("file", png()), ("query", "red"), **headers).status == 200


def test_urls(start, png, tmp_path):
    """Off unless allowed; and then not into the network of the server."""
    with start() as server:
        reply = server.post({"url": "http://127.0.0.1/x.png", "queries": ["red"]})
        assert (reply.status, reply.code) == (422, "invalid_request")
    with start(allow_urls=True) as server:
        for url in (f"{server.url}/healthz", "http://169.254.169.254/", f"file://{tmp_path}", "http://localhost/"):
            reply = server.post({"url": url, "queries": ["red"]})
            assert (reply.status, reply.code) == (422, "url_refused")


def test_urls_of_a_web_server(start, png):
    with start(allow_urls=True, fetcher=lambda url: png(4)) as server:
        reply = server.post({"url": "https://images.example/a.png", "queries": ["red"]})
        assert reply.status == 200
        assert reply.data["image"] == "https://images.example/a.png"
        assert reply.data["answers"] == server.form(("file", png(4)), ("query", "red")).data["answers"]
        batch = server.post(
            {"items": [{"url": "https://images.example/a.png", "queries": ["red"]}]}, "/v1/segment/batch"
        )
        assert batch.data["results"][0]["answers"] == reply.data["answers"]


def test_openapi_has_examples_that_work(live):
    document = live.ask("GET", "/openapi.json").data
    for path in ("/v1/segment", "/v1/segment/batch"):
        operation = document["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        reply = live.post(example, path)
        assert reply.status == 200, reply.body
        assert {"200", "400", "401", "406", "408", "413", "415", "422", "429", "500", "503", "504"} <= set(
            operation["responses"]
        )
    shown = document["paths"]["/v1/segment"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert Result.from_dict(shown).to_dict() == shown
    segment = shown["answers"][0]["segments"][0]
    assert path_to_rle(segment["path"], tuple(shown["size"])) == segment["rle"]
    assert json.dumps(document).count("#/$defs/") == 0
