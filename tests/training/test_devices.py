"""Where a run's tensors must lie on GPUs, looked at on a machine without one."""

from types import SimpleNamespace

import torch
from torch import nn

from vlseg.training import reinforce, state
from vlseg.training.loop import Trainer


def test_averages_written_on_another_gpu_are_read(tmp_path, monkeypatch):
    """A rank's share of a run on several GPUs names its own, which the machine that goes on may not have."""
    run = SimpleNamespace(accelerator=SimpleNamespace(process_index=0, num_processes=1))
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:5")
        torch.save({"updates": 3, "average": [torch.arange(4.0)]}, state._average_file(run, tmp_path))
    average = state._read_average(run, tmp_path)["average"][0]
    assert (average.device.type, average.tolist()) == ("cpu", [0, 1, 2, 3])


def test_the_model_as_it_was_is_put_where_the_run_is(monkeypatch):
    """Reinforcement copies the model before Accelerate moves it; "meta" stands for the GPU."""
    monkeypatch.setattr(Trainer, "prepare_model", lambda self: None)
    monkeypatch.setattr(reinforce, "codec_of", lambda config: None)
    run = object.__new__(reinforce.Reinforcer)
    run.plain = run.core = nn.Linear(2, 2)
    run.core.config, run.adapted = None, False
    run.accelerator = SimpleNamespace(device=torch.device("meta"))
    run.prepare_model()
    assert {p.device.type for p in run.reference.parameters()} == {"meta"}
    assert not any(p.requires_grad for p in run.reference.parameters())
    assert run.core.weight.device.type == "cpu"
