"""The queue in front of a model: who shares a call, and that nobody gets what is another's."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlseg.serving.batching import Engine, Job
from vlseg.serving.errors import ServiceError
from vlseg.serving.metrics import ServerMetrics
from vlseg.serving.settings import ServerSettings
from vlseg.types import VLSegError

IMAGES = [Image.new("RGB", (20 + i, 10 + i)) for i in range(12)]


@pytest.fixture
def engine(fake):
    made = Engine(fake.segmenter, "fake", ServerSettings(), ServerMetrics().engine("fake"))
    yield made
    fake.system.go.set()
    made.close(10)


def job(image: int, *queries: str, presence=None, mask=0.5, seconds=20.0) -> Job:
    return Job(bytes([image]), IMAGES[image], queries, presence, mask, time.monotonic() + seconds)


def hold(fake, engine) -> Job:
    """Keep the model busy, so that what is submitted next waits together."""
    fake.system.go.clear()
    first = job(11, "first")
    engine.submit(first)
    assert fake.system.entered.wait(5)
    return first


def release(fake, *jobs: Job) -> list[list[str]]:
    fake.system.go.set()
    return [[answer.text for answer in j.reply.result(10).answers] for j in jobs]


def test_one_image_is_one_row(fake, engine):
    hold(fake, engine)
    jobs = [job(0, "red"), job(0, "blue", "red"), job(0, "green")]
    for one in jobs:
        engine.submit(one)
    assert release(fake, *jobs) == [["red"], ["blue", "red"], ["green"]]
    assert fake.system.calls[1:] == [[["red", "blue", "green"]]]


def test_different_images_share_a_call(fake, engine):
    hold(fake, engine)
    jobs = [job(i, f"query {i}", "red") for i in range(4)]
    for one in jobs:
        engine.submit(one)
    assert release(fake, *jobs) == [[f"query {i}", "red"] for i in range(4)]
    assert fake.system.calls[1:] == [[[f"query {i}", "red"] for i in range(4)]]
    assert [j.reply.result().answers[0].size for j in jobs] == [(10 + i, 20 + i) for i in range(4)]


def test_thresholds_are_not_mixed(fake, engine):
    hold(fake, engine)
    jobs = [job(0, "red"), job(0, "blue", presence=0.9), job(0, "green", mask=0.7), job(0, "white", presence=0.9)]
    for one in jobs:
        engine.submit(one)
    assert release(fake, *jobs) == [["red"], ["blue"], ["green"], ["white"]]
    assert fake.system.calls[1:] == [[["red"]], [["blue", "white"]], [["green"]]]


def test_calls_are_bounded(fake, engine):
    hold(fake, engine)
    jobs = [job(i % 10, *(f"{i} {k}" for k in range(10))) for i in range(20)]
    for one in jobs:
        engine.submit(one)
    assert release(fake, *jobs) == [[f"{i} {k}" for k in range(10)] for i in range(20)]
    for call in fake.system.calls:
        assert len(call) <= engine.settings.call_images
        assert sum(map(len, call)) <= engine.settings.call_queries
    alone = job(0, *(str(k) for k in range(500)))  # more than a call holds: goes alone, and whole
    engine.submit(alone)
    assert len(alone.reply.result(10).answers) == 500


def test_a_lonely_request_waits_for_the_window_and_no_longer(fake):
    engine = Engine(fake.segmenter, "fake", ServerSettings(window=0.2), ServerMetrics().engine("fake"))
    jobs = [job(0, "red"), job(0, "blue")]
    start = time.monotonic()
    engine.submit(jobs[0])
    time.sleep(0.05)
    engine.submit(jobs[1])
    release(fake, *jobs)
    assert fake.system.calls == [[["red", "blue"]]]
    assert 0.19 <= time.monotonic() - start < 2
    engine.close(5)


def test_what_was_given_up_is_not_computed(fake, engine):
    hold(fake, engine)
    gone, late, stays = job(0, "gone"), job(0, "late", seconds=0.05), job(0, "stays")
    for one in (gone, late, stays):
        engine.submit(one)
    assert gone.reply.cancel()
    time.sleep(0.1)
    assert release(fake, stays) == [["stays"]]
    assert fake.system.calls[1:] == [[["stays"]]]
    with pytest.raises(ServiceError, match="too long") as caught:
        late.reply.result(5)
    assert caught.value.status == 504


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("secret"), "internal"), (VLSegError("query: no"), "invalid_request")]
)
def test_one_bad_request_spoils_no_other(fake, engine, error, code):
    hold(fake, engine)

    def fail(texts):
        if "poison" in texts:
            raise error

    jobs = [job(0, "red"), job(0, "poison"), job(1, "blue")]
    for one in jobs:
        engine.submit(one)
    fake.system.fail = fail
    assert release(fake, jobs[0], jobs[2]) == [["red"], ["blue"]]
    with pytest.raises(ServiceError) as caught:
        jobs[1].reply.result(5)
    assert caught.value.code == code
    assert "secret" not in caught.value.message


def test_a_thread_thrown_out_of_its_work_goes_on(fake, engine):
    def fail(texts):
        if "exit" in texts:
            raise SystemExit

    fake.system.fail = fail
    dead = job(0, "exit")
    engine.submit(dead)
    with pytest.raises(ServiceError) as caught:
        dead.reply.result(5)
    assert caught.value.status == 503
    after = job(0, "after")
    engine.submit(after)
    assert release(fake, after) == [["after"]]


def test_a_thread_struck_from_outside_goes_on(fake, engine):
    for _ in range(5):
        strike = ctypes.pythonapi.PyThreadState_SetAsyncExc
        assert strike(ctypes.c_ulong(engine._thread.ident), ctypes.py_object(SystemExit)) == 1
        after = job(0, "after")
        engine.submit(after)
        error = after.reply.exception(10)  # where it was struck with this very job in its hands
        assert error is None or error.status == 503
    last = job(0, "last")
    engine.submit(last)
    assert release(fake, last) == [["last"]]


def test_close_finishes_what_waits(fake, engine):
    first = hold(fake, engine)
    waiting = job(0, "waiting")
    engine.submit(waiting)
    closing = threading.Thread(target=engine.close, args=(10,))
    closing.start()
    time.sleep(0.05)
    with pytest.raises(ServiceError, match="stopping"):
        engine.submit(job(0, "too late"))
    assert release(fake, first, waiting) == [["first"], ["waiting"]]
    closing.join(10)
    assert not engine._thread.is_alive()


def test_stuck(fake, engine):
    assert not engine.stuck(0.01)
    first = hold(fake, engine)
    time.sleep(0.05)
    assert engine.stuck(0.01)
    assert not engine.stuck(60)
    release(fake, first)


requests = st.tuples(
    st.integers(0, 5), st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4), st.sampled_from([None, 0.1])
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests, min_size=1, max_size=30))
def test_everybody_gets_their_own(fake, asked):
    engine = Engine(fake.segmenter, "fake", ServerSettings(window=0.001), ServerMetrics().engine("fake"))
    jobs = [job(image, *queries, presence=presence) for image, queries, presence in asked]
    for one in jobs:
        engine.submit(one)
    for one, (image, queries, _) in zip(jobs, asked, strict=True):
        answers = one.reply.result(10).answers
        assert [a.text for a in answers] == queries
        assert {a.size for a in answers} == {(10 + image, 20 + image)}
    engine.close(5)
