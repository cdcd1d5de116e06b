"""schemathesis against a live server: what OpenAPI promises is what happens, with real pictures and without."""

from __future__ import annotations

import base64
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

schemathesis = pytest.importorskip("schemathesis")


def file_of(kind: str, seed: int, width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").rotate(seed).resize((width, height)).convert("RGB").save(file, kind)
    return file.getvalue()


pictures = st.builds(
    file_of, st.sampled_from(["PNG", "JPEG"]), st.integers(0, 89), st.integers(1, 40), st.integers(1, 40)
)
schemathesis.openapi.format("byte", pictures.map(lambda data: base64.b64encode(data).decode()))
schemathesis.openapi.format("binary", pictures)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(), ("k" * 20,)])
def test_all_checks(start, keys):
    with start(api_keys=keys, max_pixels=100_000) as server:
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=headers)
        operations = list(schema.get_all_operations())
        assert {o.ok().path for o in operations} == set(schema.raw_schema["paths"])
        seen: dict[tuple[str, int], int] = {}
        for operation in operations:

            @settings(max_examples=60, suppress_health_check=list(HealthCheck))
            @given(operation.ok().as_strategy())
            def check(case):
                response = case.call(base_url=server.url, headers=headers, timeout=60)
                key = (case.path, response.status_code)
                seen[key] = seen.get(key, 0) + 1
                case.validate_response(response, headers=headers)

            check()
        assert {status for path, status in seen if path == "/v1/segment"} == {200}, seen
        assert {status for path, status in seen if path == "/v1/segment/batch"} == {200}, seen


@pytest.mark.slow
def test_what_is_not_promised_is_refused(start):
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import negative_data_rejection

    with start(max_pixels=100_000) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        statuses: set[int] = set()
        for path in ("/v1/segment", "/v1/segment/batch"):

            @settings(max_examples=150, suppress_health_check=list(HealthCheck))
            @given(schema[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
            def check(case):
                response = case.call(base_url=server.url, timeout=60)
                statuses.add(response.status_code)
                # In a form all values are text: the number 0 in the place of words is the word "0", and an empty list
                # in the place of a number is a field that was left out.
                form = case.media_type == "multipart/form-data"
                case.validate_response(response, excluded_checks=[negative_data_rejection] if form else None)

            check()
        assert statuses <= {200, 400, 405, 413, 415, 422}
        assert 422 in statuses
