"""Path mode learned by adapters: the rows of its tokens are trained and saved; a tied head is refused in one line."""

from __future__ import annotations

import pytest
import torch
from many_runs import recipe

from vlseg.models.modeling import VLSegModel
from vlseg.segmenter import Segmenter
from vlseg.training import merge
from vlseg.training.loop import Trainer, train
from vlseg.types import VLSegError

PATHS = ("paths.on=true", "paths.grid=16", "paths.box_bins=32", "paths.max_tokens=20", "loss.path=4")


@pytest.mark.slow
def test_adapters_learn_paths(vlm_folder, blocks_jsonl, tmp_path):
    """In embedding and head the rows of the path tokens move, and no other but those of [SEG] and [REJ]."""
    config = recipe("lora", tmp_path / "run", vlm_folder, blocks_jsonl, *PATHS, "optim.lr=3e-3")
    before = merge.merged_state(Trainer(config).plain)
    train(config)
    final = VLSegModel.from_pretrained(tmp_path / "run" / "final")
    first, count = final.config.paths["first"], len(final.path_grammar)
    told = {final.config.seg_token_id, final.config.rej_token_id, *range(first, first + count)}
    saved = final.state_dict()
    for name in ("vlm.lm_head.weight", "vlm.model.language_model.embed_tokens.weight"):
        moved = (saved[name].float() != before[name].float()).any(1).nonzero().flatten().tolist()
        assert set(moved) <= told
        assert len(set(moved) & set(range(first, first + count))) > 5
    answers = Segmenter(tmp_path / "run" / "final", device="cpu")(
        blocks_jsonl.parent / "0.png", ["the red mug"], mode="path", presence_threshold=0
    )
    assert answers[0].status in ("found", "failed")


def test_a_tied_head_is_refused(tiny_folder, blocks_jsonl, tmp_path):
    """Adapters train rows of the head; in a tied model the embedding would not see what they learn."""
    model = VLSegModel.from_pretrained(tiny_folder)
    assert model.vlm.get_input_embeddings().weight is model.vlm.get_output_embeddings().weight
    with pytest.raises(VLSegError, match=r"path tokens with adapters: .* \(adapter=none\)") as told:
        Trainer(recipe("lora", tmp_path, tiny_folder, blocks_jsonl, *PATHS))
    assert "\n" not in str(told.value)
    whole = Trainer(recipe("full", tmp_path, tiny_folder, blocks_jsonl, *PATHS))  # the way out that the line names
    assert torch.isfinite(torch.tensor(whole.train_step([next(whole.batches())])["loss"]))
