"""What a GPU would refuse, on a machine without one: FakeTensorMode has tensors that are said to be on "cuda"."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vlseg.models.processing import VLSegProcessor
from vlseg.models.tokenizer import word_tokenizer

IMAGE = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def processor():
    return VLSegProcessor(word_tokenizer(["the", "dog"]), IMAGE, {"suffix": "the", "max_tokens": 8})


def test_pixels_are_normalised_where_they_are(processor):
    """Every training step does it behind `Batch.to`, on the GPU."""
    with FakeTensorMode():
        pixels = torch.zeros(2, 4, 6, 3, dtype=torch.uint8, device="cuda")
        ready = processor.normalise(pixels)
    assert (ready.device.type, ready.dtype, tuple(ready.shape)) == ("cuda", torch.float32, (2, 3, 4, 6))
    values = processor.normalise(torch.full((1, 1, 1, 3), 51, dtype=torch.uint8))
    torch.testing.assert_close(values.flatten(), torch.tensor([-1.5, -2 / 3, -0.25]))


def test_a_mean_left_on_the_cpu_is_noticed(processor, monkeypatch):
    """The test above can fail."""
    made = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *values, device=None, **options: made(*values, **options))
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        processor.normalise(torch.zeros(2, 4, 6, 3, dtype=torch.uint8, device="cuda"))
