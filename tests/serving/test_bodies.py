"""Bodies and Accept headers, taken apart without a server."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.serving.errors import ServiceError
from vlseg.serving.forms import body_kind, parse_form
from vlseg.serving.intake import read_batch, read_segment
from vlseg.serving.render import View, negotiate
from vlseg.serving.settings import ServerSettings
from vlseg.types import VLSegError

LIMITS = ServerSettings(max_queries=3, max_query_chars=20, max_images=2)
FORM = "multipart/form-data; boundary=b"


def form(*parts: tuple[str, bytes], boundary: bytes = b"b") -> bytes:
    out = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (boundary, name.encode(), b'; filename="p.png"' if name == "file" else b"", data)
        for name, data in parts
    )
    return out + b"--%s--\r\n" % boundary


def refused(code: str, function, *arguments) -> str:
    with pytest.raises(ServiceError) as caught:
        function(*arguments)
    assert caught.value.code == code, caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 1000
    return caught.value.message


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["file", "query", "Ü"]), st.binary(max_size=80)), max_size=6))
def test_forms_come_back_bit_for_bit(parts):
    boundary = b"0123456789abcdef0123456789abcdef"
    read = parse_form(form(*parts, boundary=boundary), boundary, 10)
    assert [(part.name, part.data) for part in read] == parts
    assert [part.filename for part in read] == ["p.png" if name == "file" else None for name, _ in parts]


def status_of(function, *arguments) -> int:
    try:
        function(*arguments)
    except ServiceError as error:
        return error.status
    return 200


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_form_reader(body):
    assert status_of(parse_form, b"--b\r\n" + body, b"b", 5) in (200, 400, 422)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"--b--",
        form(("query", b"x"))[:-6],
        form(("query", b"x"))[:30],
        b"--b\r\n\r\nno name\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: attachment; name="query"\r\n\r\nx\r\n--b--\r\n',
        form(("query", b"eA==")).replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1),
        b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="query"\r\n' + b"X: y\r\n" * 1000 + b"\r\nx\r\n--b--\r\n",
    ],
)
def test_broken_forms(body):
    refused("bad_request" if body != b"--b--" else "invalid_request", read_segment, body, FORM, LIMITS)


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        (None, "unsupported_body"),
        ("", "unsupported_body"),
        ("text/plain", "unsupported_body"),
        ("application/x-www-form-urlencoded", "unsupported_body"),
        ("application/json2", "unsupported_body"),
        ("multipart/form-data", "bad_request"),
        ("multipart/form-data; boundary=" + "x" * 201, "bad_request"),
        ("☃", "unsupported_body"),
    ],
)
def test_wrong_content_types(content_type, code):
    refused(code, body_kind, content_type)


def test_content_type_with_parameters():
    assert body_kind("Application/JSON; charset=utf-8") == ("application/json", b"")
    assert body_kind('multipart/form-data; boundary="a b"') == ("multipart/form-data", b"a b")


def test_a_form():
    body = form(("file", b"PIXELS"), ("query", "der rote Becher ☕".encode()), ("query", b"[SEG]"), ("model", b"m"))
    asked = read_segment(body + b"", FORM, LIMITS)
    (item,) = asked.items
    assert (item.name, item.data, item.url) == ("p.png", b"PIXELS", None)
    assert item.queries == ["der rote Becher ☕", "[SEG]"]
    assert (asked.options.model, asked.options.presence_threshold, asked.options.mask_threshold) == ("m", None, 0.5)


@pytest.mark.parametrize(
    ("parts", "code", "says"),
    [
        ([("query", b"x")], "invalid_request", "exactly one part `file`"),
        ([("file", b"1"), ("file", b"2"), ("query", b"x")], "invalid_request", "got 2"),
        ([("file", b"1")], "invalid_request", "no query"),
        ([("file", b"1"), ("query", b" \t")], "invalid_request", "query 1 is empty"),
        ([("file", b"1"), ("query", b"\xff\xfe")], "bad_request", "not UTF-8"),
        ([("file", b"1"), ("query", b"x" * 21)], "invalid_request", "longer than 20"),
        ([("file", b"1"), *[("query", b"x")] * 4], "invalid_request", "at most 3"),
        ([("file", b"1"), *[("query", b"x")] * 10_000], "invalid_request", "more than 19 parts"),
        ([("file", b"1"), ("query", b"x"), ("path", b"/etc/passwd")], "invalid_request", "'path': no field"),
        ([("file", b"1"), ("query", b"x"), ("mask_threshold", b"half")], "invalid_request", "not a number"),
        ([("file", b"1"), ("query", b"x"), ("mask_threshold", b"nan")], "invalid_request", "finite"),
        ([("file", b"1"), ("query", b"x"), ("mask_threshold", b"1")], "invalid_request", "less than 1"),
        ([("file", b"1"), ("query", b"x"), ("presence_threshold", b"-1")], "invalid_request", "presence_threshold"),
        ([("file", b"1"), ("query", b"x"), ("model", b"a"), ("model", b"b")], "invalid_request", "given twice"),
        ([("file", b"1"), ("query", b"x"), ("mode", b"fast")], "invalid_request", "mode"),
    ],
)
def test_wrong_forms(parts, code, says):
    assert says in refused(code, read_segment, form(*parts), FORM, LIMITS)


IMAGE = base64.b64encode(b"PIXELS").decode()


def test_json():
    for image in (IMAGE, f"data:image/png;base64,{IMAGE}"):
        asked = read_segment(
            json.dumps({"image": image, "queries": ["x"], "mask_threshold": 0.25}).encode(), "application/json", LIMITS
        )
        assert asked.items[0].data == b"PIXELS"
        assert asked.items[0].name == "image"
        assert asked.options.mask_threshold == 0.25


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", "bad_request", "no JSON"),
        (b"{", "bad_request", "no JSON"),
        (b'{"queries": ["\xff"]}', "bad_request", "no JSON"),
        (b'{"image": "", "queries": ["\\ud800"]}', "bad_request", "no JSON"),
        (b"[" * 100_000, "bad_request", "no JSON"),
        (b"[]", "invalid_request", "the body"),
        (b"null", "invalid_request", "the body"),
        ({}, "invalid_request", "queries: Field required"),
        ({"queries": ["x"]}, "invalid_request", "exactly one of image and url"),
        ({"image": IMAGE, "url": "http://a/b", "queries": ["x"]}, "invalid_request", "exactly one"),
        ({"url": "http://a/b", "queries": ["x"]}, "invalid_request", "fetches no images"),
        ({"image": IMAGE, "queries": "x"}, "invalid_request", "queries"),
        ({"image": IMAGE, "queries": []}, "invalid_request", "no query"),
        ({"image": IMAGE, "queries": [""]}, "invalid_request", "query 1 is empty"),
        ({"image": IMAGE, "queries": ["x", None]}, "invalid_request", "queries[1]"),
        ({"image": IMAGE, "queries": ["x"] * 10_000}, "invalid_request", "at most 3"),
        ({"image": "***", "queries": ["x"]}, "invalid_request", "not base64"),
        ({"image": "data:image/png,xyz", "queries": ["x"]}, "invalid_request", "without base64"),
        ({"image": 7, "queries": ["x"]}, "invalid_request", "image"),
        ({"image": IMAGE, "queries": ["x"], "mask_threshold": "0.5"}, "invalid_request", "mask_threshold"),
        ({"image": IMAGE, "queries": ["x"], "mask_threshold": float("nan")}, "invalid_request", "mask_threshold"),
        ({"image": IMAGE, "queries": ["x"], "presence_threshold": True}, "invalid_request", "presence_threshold"),
        ({"image": IMAGE, "queries": ["x"], "file": "/etc/passwd"}, "invalid_request", "file"),
    ],
)
def test_wrong_json(data, code, says):
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    assert says in refused(code, read_segment, body, "application/json", LIMITS)


def test_errors_do_not_repeat_the_clients_data():
    message = refused(
        "invalid_request",
        read_segment,
        json.dumps({"image": {"secret": "x" * 10_000}, "queries": ["y"]}).encode(),
        "application/json",
        LIMITS,
    )
    assert "secret" not in message


def test_batches():
    items = [{"image": IMAGE, "queries": ["x"], "name": "a\nb.png"}, {"image": IMAGE, "queries": ["y", "z"]}]
    asked = read_batch(json.dumps({"items": items, "model": "m"}).encode(), "application/json", LIMITS)
    assert [item.queries for item in asked.items] == [["x"], ["y", "z"]]
    assert asked.items[0].name == "a\ufffdb.png"
    assert asked.options.model == "m"
    for count in (0, 3):
        body = json.dumps({"items": items[:1] * count}).encode()
        assert "1 to 2" in refused("invalid_request", read_batch, body, "application/json", LIMITS)
    body = json.dumps({"items": [items[0], {"image": IMAGE, "queries": [""]}]}).encode()
    assert "items[1]: query 1" in refused("invalid_request", read_batch, body, "application/json", LIMITS)
    refused("unsupported_body", read_batch, b"", FORM, LIMITS)


@pytest.mark.parametrize(
    ("accept", "view"),
    [
        (None, View.JSON),
        ("", View.JSON),
        ("*/*", View.JSON),
        ("application/json", View.JSON),
        ("application/*", View.JSON),
        ("image/png", View.OVERLAY),
        ("image/*", View.OVERLAY),
        ("IMAGE/PNG", View.OVERLAY),
        ("image/png; view=mask", View.MASK),
        ('image/png;view="mask";q=0.5, text/html', View.MASK),
        ("image/svg+xml", View.SVG),
        ("image/svg+xml;q=0.5, image/png;q=0.9", View.OVERLAY),
        ("text/html, image/svg+xml;q=0.9, */*;q=0.1", View.SVG),
        ("application/json;q=0, */*", View.OVERLAY),
        ("garbage, application/json;q=0.1", View.JSON),
    ],
)
def test_accept(accept, view):
    assert negotiate(accept) is view


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", "image/png; view=depth", "*/*;q=0", "garbage"])
def test_not_acceptable(accept):
    assert "image/png; view=mask" in refused("not_acceptable", negotiate, accept)


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_no_accept_header_breaks_it(accept):
    assert status_of(negotiate, accept) in (200, 406)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_queries": 0}, "--max-queries"),
        ({"deadline": -1}, "--deadline"),
        ({"max_pixels": 200_000_000}, "at most 178,000,000"),
        ({"memory": 2**20}, "--memory"),
        ({"api_keys": ("short",)}, "API key"),
    ],
)
def test_wrong_settings(wrong, says):
    with pytest.raises(VLSegError, match=says):
        ServerSettings(**wrong).check()


def test_loopback_and_hosts():
    ServerSettings().check()
    assert ServerSettings().loopback
    assert ServerSettings(host="::1").loopback
    assert not ServerSettings(host="0.0.0.0").loopback
    assert not ServerSettings(host="vlseg.example").loopback
    assert ServerSettings(hosts=("Vlseg.Example",)).allowed_hosts == {"localhost", "127.0.0.1", "::1", "vlseg.example"}
    assert ServerSettings(host="0.0.0.0").allowed_hosts == frozenset()
