"""The mask rule against a literal restatement, and the layout of packed rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlseg.models.packing import IMAGE, PADDING, additive_mask, pack_queries, visibility


@given(
    owner=st.lists(st.sampled_from([IMAGE, 1, 2, 3, PADDING]), min_size=1, max_size=14),
    block=st.lists(st.integers(0, 2), min_size=14, max_size=14),
)
def test_visibility_is_the_written_rule(owner, block):
    got = visibility(torch.tensor([owner]), torch.tensor([block[: len(owner)]]))[0]
    for i in range(len(owner)):
        for j in range(len(owner)):
            owned = owner[j] in (IMAGE, owner[i])
            ordered = j <= i or (block[i] == block[j] and block[i] > 0)
            want = (owned and ordered and owner[j] != PADDING) or i == j
            assert got[i, j].item() == want, (i, j)


def test_no_query_sees_another_and_the_image_sees_no_query():
    packed = pack_queries([[[7, 8], [9, 10, 11]]], pad_id=0)
    owner = torch.cat([torch.zeros(1, 4, dtype=torch.long), packed.owner], 1)
    seen = visibility(owner)[0]
    assert not seen[:4, 4:].any()
    assert not seen[4:6, 6:].any()
    assert not seen[6:, 4:6].any()
    assert seen[4:, :4].all()


def test_pack_queries_layout():
    packed = pack_queries([[[5, 6, 7], [8]], [[9, 9]]], pad_id=1)
    assert packed.ids.tolist() == [[5, 6, 7, 8], [9, 9, 1, 1]]
    assert packed.owner.tolist() == [[1, 1, 1, 2], [1, 1, PADDING, PADDING]]
    assert packed.offset.tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert packed.answers.tolist() == [[2, 3], [1, 0]]
    assert packed.valid.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_additive_mask_is_never_bool(dtype):
    mask = additive_mask(torch.tensor([[[True, False], [True, True]]]), dtype)
    assert mask.dtype == dtype
    assert mask.shape == (1, 1, 2, 2)
    assert mask[0, 0, 0, 1] == torch.finfo(dtype).min
    assert mask.isfinite().all()  # a row of -inf would give NaN for padding
