"""Paths written side by side over one cache: true to the grammar, equal to what the stock class writes one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_families import CAUSAL, stock_row
from transformers import DynamicCache

from vlseg.masks.path_codec import PathCodec
from vlseg.models.grammar import PathGrammar
from vlseg.models.path_decoding import PathReader, decode_paths, stream_paths
from vlseg.models.path_head import add_paths, codec_of, pack_paths
from vlseg.models.presets import build_preset
from vlseg.models.specimens import SPECIMENS
from vlseg.types import VLSegError

CODEC = PathCodec(grid=8, box_bins=16, curves=True)
WANTED = ("fastvlm", "qwen3-vl", "smolvlm", "internvl")
LIMIT = 18


def spread(model, seed=0):
    """Path rows as far apart as words are, so that queries write different paths."""
    first, count = model.config.paths["first"], len(model.path_grammar)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (model.vlm.get_input_embeddings(), model.vlm.get_output_embeddings()):
            rows = part.weight[first : first + count]
            part.weight[first : first + count] = torch.randn(rows.shape, generator=noise) * part.weight[:first].std()


@pytest.fixture(scope="module")
def with_paths(build, texts):
    """with_paths(name): a specimen with path mode whose queries write different paths, and its processor."""
    made = {}

    def pair(name):
        if name not in made:
            model, processor = build(name)
            add_paths(model, processor, CODEC, LIMIT)
            for seed in range(50):
                spread(model.eval(), seed)
                paths = write(model, processor, [texts[:4]], noise())
                if len({tuple(path) for path in paths.values()}) == 4 and min(map(len, paths.values())) > 4:
                    break
            made[name] = model, processor
        return made[name]

    return pair


@pytest.fixture(scope="module")
def tiny():
    """A tiny model with path mode, for what does not depend on the family."""
    words = ["the", "red", "blue", "dog", "cat", "mug", "left", "of", "a"]
    model, processor = build_preset("tiny", words, nouns=5, seed=0)
    add_paths(model, processor, CODEC, LIMIT)
    spread(model)
    with torch.no_grad():
        for name, weight in model.vlm.model.language_model.named_parameters():
            if "layers" in name and weight.ndim == 2:
                weight.mul_(10)
    return model.eval(), processor


def read(model, packed, pixels):
    """Features, query tensors and the cache that a packed row leaves."""
    with torch.no_grad():
        image, cache = model.encode_image(pixels), DynamicCache()
        model(image_features=image, cache=cache, **packed.tensors())
    return image, packed.tensors(), cache


def write(model, processor, rows, pixels, **options):
    """Paths of all queries of the rows."""
    packed = processor.pack(rows)
    return decode_paths(model, *read(model, packed, pixels), packed.valid, **options)


def noise(batch=1, height=96, width=128):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


# one by one ----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def stock_paths(model, processor, pixels, texts, limit):
    """What the stock class writes for each query alone, by whole passes without a cache, and its logits, step by step.

    Its own masks and positions; the grammar is that of `Vocabulary`, asked token by token.
    """
    tokens, vocabulary = model.encode_image(pixels).tokens, CODEC.vocabulary
    first, count = model.config.paths["first"], len(vocabulary)
    paths, steps = [], []
    for text in texts:
        ids, path, state, seen = [*processor.query_ids(text), model.config.seg_token_id], [], vocabulary.start, []
        while state != vocabulary.stop:
            states = model.vlm.model(**stock_row(model, pixels, tokens, ids), use_cache=False).last_hidden_state
            logits = model.vlm.get_output_embeddings()(states[0, -1])[first : first + count].float()
            left = limit - len(path)
            allowed = np.array(
                [
                    way >= 0 and vocabulary.steps_to_stop[way] < left
                    for way in vocabulary.transitions[state][vocabulary.token_class]
                ]
            )
            seen.append(logits)
            choice = int(logits.masked_fill(~torch.from_numpy(allowed), float("-inf")).argmax())
            path.append(choice)
            ids.append(first + choice)
            state = int(vocabulary.transitions[state, vocabulary.token_class[choice]])
        paths.append(path)
        steps.append(seen)
    return paths, steps


@pytest.mark.parametrize("name", [n if n in WANTED else pytest.param(n, marks=pytest.mark.slow) for n in CAUSAL])
@torch.no_grad()
def test_side_by_side_equals_the_stock_class_one_by_one(with_paths, texts, name):
    model, processor = with_paths(name)
    pixels, texts = noise(), texts[:4]
    want, steps = stock_paths(model, processor, pixels, texts, LIMIT)
    assert len({tuple(path) for path in want}) == len(texts), "paths must differ to tell a mix-up"
    got = write(model, processor, [texts], pixels)
    assert [got[0, k] for k in range(len(texts))] == want
    # and the logits of every step, fed with those tokens
    packed = processor.pack([texts])
    reader = PathReader(model, *read(model, packed, pixels))
    first = model.config.paths["first"]
    for number in range(max(map(len, want))):
        alive = [k for k, path in enumerate(want) if len(path) > number]
        ids = [first + want[k][number - 1] if number else model.config.seg_token_id for k in alive]
        owner, fed = torch.tensor([alive]) + 1, torch.tensor([ids])
        logits = reader.step(owner, fed, reader.lengths[:, alive] + number)[0]
        for slot, k in enumerate(alive):
            scale = steps[k][number].abs().max()
            assert (logits[slot] - steps[k][number]).abs().max() <= 1e-4 * scale


@pytest.mark.parametrize("name", [n for n in sorted(SPECIMENS) if n in WANTED or n.startswith("paligemma")])
@torch.no_grad()
def test_training_sees_what_writing_sees(with_paths, texts, name):
    """Logits over the packed row of training equal those of writing; scores and masks are not touched by a path."""
    model, processor = with_paths(name)
    pixels, texts = noise(2), texts[:3]
    paths = write(model, processor, [texts, texts[:2]], pixels)
    rows = [[processor.query_ids(t) for t in texts], [processor.query_ids(t) for t in texts[:2]]]
    mine = [[paths[0, 0], None, paths[0, 2]], [paths[1, 0], paths[1, 1]]]
    packed = pack_paths(rows, mine, model.config, processor.pad_id)
    plain = processor.pack([texts, texts[:2]])
    want, got = model(pixel_values=pixels, **plain.tensors()), model(pixel_values=pixels, **packed.tensors())
    for name_ in ("token_logits", "mask_logits", "evidence"):
        a, b = getattr(want, name_)[plain.valid], getattr(got, name_)[plain.valid]
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    # of every place the likeliest token is the one that was written, where enough tokens were left
    image, place = (packed.path_targets >= 0).nonzero(as_tuple=True)
    target = packed.path_targets[image, place]
    assert len(got.path_logits) == len(target) == sum(len(path) for row in mine for path in row if path)
    chosen = got.path_logits.argmax(-1)
    at = packed.path_targets.new_tensor([n for row in mine for path in row if path for n in range(len(path))])
    free = at < LIMIT - 8
    assert free.sum() > 20
    assert torch.equal(chosen[free], target[free])
    assert got.path_logits.gather(1, target[:, None]).isfinite().all()


# chance --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("images", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_every_sampled_string_is_a_path(tiny, images):
    """64 queries an image, eight images a call; 1,024 strings, and 10,240 in the slow run."""
    model, processor = tiny
    vocabulary, seen, lengths = CODEC.vocabulary, set(), []
    for call in range(images):
        rows = [[f"the {k} dog" for k in range(64)]] * 8
        seeds = [[call * 1000 + b * 100 + k for k in range(64)] for b in range(8)]
        paths = write(model, processor, rows, noise(8, 64, 64), temperature=1.5, seeds=seeds)
        assert len(paths) == 512
        for path in paths.values():
            assert vocabulary.accepts(path)
            assert len(path) <= LIMIT
            lengths.append(len(path))
            seen.update(vocabulary.classes[c] for c in vocabulary.token_class[path])
            assert CODEC.decode(path, (32, 48)).shape == (32, 48)
    assert seen == set(vocabulary.classes)
    assert len(set(lengths)) > 5


def test_without_the_grammar_strings_break(tiny):
    """The test above can fail."""
    model, processor = tiny

    class Anything(PathGrammar):
        def masked(self, logits, state, left=None):
            return logits

    packed = processor.pack([[f"the {k} dog" for k in range(64)]])
    free = Anything(CODEC.vocabulary)
    options = {"temperature": 1.5, "seeds": [list(range(64))], "grammar": free}
    pieces = list(stream_paths(model, *read(model, packed, noise()), packed.valid, **options))
    assert len(pieces) > 10
    assert sum(CODEC.vocabulary.accepts(piece.tokens) for piece in pieces) < 0.5 * len(pieces)


def test_draws_depend_on_the_seed_alone(tiny):
    model, processor = tiny
    texts = ["the dog", "a red mug left of the cat", "blue cat"]
    options = {"temperature": 1.0, "seeds": [[5, 6, 7]]}
    together = write(model, processor, [texts], noise(), **options)
    assert write(model, processor, [texts], noise(), **options) == together
    for k, text in enumerate(texts):
        alone = write(model, processor, [[text]], noise(), temperature=1.0, seeds=[[5 + k]])
        assert alone[0, 0] == together[0, k]
    other = write(model, processor, [texts], noise(), temperature=1.0, seeds=[[15, 16, 17]])
    assert other != together
    assert write(model, processor, [texts], noise(), temperature=1e-4, seeds=[[1, 2, 3]]) == write(
        model, processor, [texts], noise()
    )


def test_draws_follow_the_softmax(tiny):
    """The first token of 600 draws against its probabilities; each draw is a query of its own."""
    model, processor = tiny
    packed = processor.pack([["the red dog"]])
    reader = PathReader(model, *read(model, packed, noise()))
    with torch.no_grad():
        logits = reader.step(torch.tensor([[1]]), torch.tensor([[model.config.seg_token_id]]), reader.lengths)
    want = model.path_grammar.masked(logits[0, 0], torch.tensor(0)).div(2.0).softmax(-1)
    count, draws = torch.zeros_like(want), 600
    for call in range(0, draws, 200):
        seeds = [list(range(call, call + 200))]
        rows = [["the red dog"] * 200]
        for path in write(model, processor, rows, noise(), temperature=2.0, seeds=seeds, max_tokens=6).values():
            count[path[0]] += 1
    assert (count[want == 0] == 0).all()
    assert want.max() < 0.6
    deviation = (want * (1 - want) / draws).sqrt()
    assert ((count / draws - want).abs() <= 4.5 * deviation + 1e-9).all()


# one step after the other --------------------------------------------------------------------------------------------
def test_queries_that_have_ended_are_not_read_on(tiny, monkeypatch):
    model, processor = tiny
    texts = [f"the {word} dog" for word in ("red", "blue", "left", "a", "mug", "cat")]
    packed, widths = processor.pack([texts]), []
    step = PathReader.step
    monkeypatch.setattr(
        PathReader, "step", lambda self, owner, *rest: widths.append(owner.shape[1]) or step(self, owner, *rest)
    )
    paths = decode_paths(
        model, *read(model, packed, noise()), packed.valid, temperature=1.5, seeds=[[3, 1, 4, 1, 5, 9]]
    )
    lengths = [len(path) for path in paths.values()]
    assert min(lengths) < max(lengths) == len(widths)
    assert widths == [sum(length > number for length in lengths) for number in range(len(widths))]


def test_unwanted_queries_write_nothing(tiny):
    model, processor = tiny
    texts = ["the dog", "a red mug", "blue cat"]
    all_ = write(model, processor, [texts, texts[:1]], noise(2))
    packed = processor.pack([texts, texts[:1]])
    wanted = torch.tensor([[True, False, True], [False, False, False]])
    some = decode_paths(model, *read(model, packed, noise(2)), wanted)
    assert some == {key: path for key, path in all_.items() if key in ((0, 0), (0, 2))}
    assert decode_paths(model, *read(model, packed, noise(2)), torch.zeros_like(wanted)) == {}


def test_rings_come_as_they_are_written(tiny):
    model, processor = tiny
    packed = processor.pack([[f"the {k} dog" for k in range(16)]])
    seeds = [list(range(16))]
    stream = stream_paths(model, *read(model, packed, noise()), packed.valid, temperature=1.5, seeds=seeds)
    came: dict[int, list] = {}
    for piece in stream:
        assert CODEC.vocabulary.accepts(piece.tokens)
        before = came.setdefault(piece.query, [])
        if before:
            assert not before[-1].done
            assert piece.tokens[: len(before[-1].tokens) - 1] == before[-1].tokens[:-1]
            now, then = (CODEC.vocabulary.read(p.tokens)[1] for p in (piece, before[-1]))
            assert len(now) == len(then) + 1
        before.append(piece)
    assert len(came) == 16
    assert all(pieces[-1].done for pieces in came.values())
    assert max(map(len, came.values())) > 1, "some path has several rings"


@pytest.mark.parametrize("limit", [1, 2, 6, 9, 13])
def test_a_path_ends_within_its_limit(tiny, limit):
    model, processor = tiny
    rows = [["the dog", "a red mug", "blue cat", "the"]]
    for path in write(model, processor, rows, noise(), temperature=1.5, max_tokens=limit).values():
        assert CODEC.vocabulary.accepts(path)
        assert len(path) <= limit


@pytest.mark.parametrize("amiss", [{"temperature": -1.0}, {"max_tokens": 0}])
def test_settings_amiss(tiny, amiss):
    with pytest.raises(VLSegError, match="paths: temperature"):
        write(*tiny, [["the dog"]], noise(), **amiss)


def test_the_codec_is_the_models_own(tiny):
    assert codec_of(tiny[0].config) == CODEC


def test_paths_begin_as_they_are_told(tiny):
    """A beginning that the model would have chosen itself changes nothing; another box is kept, the rest is the
    model's, true to grammar, and its neighbours write what they wrote."""
    model, processor = tiny
    rows = [["the red dog", "blue cat", "mug left of a dog"]]
    pixels = noise(1, 64, 64)
    plain = write(model, processor, rows, pixels)
    assert len(plain[0, 1]) > 5
    assert write(model, processor, rows, pixels, begins={(0, 1): plain[0, 1][:5]}) == plain
    box = [CODEC.vocabulary.first["box"] + i for i in (2, 3, 11, 14)]
    assert box != plain[0, 1][:4]
    told = write(model, processor, rows, pixels, begins={(0, 1): box})
    assert told[0, 1][:4] == box
    assert CODEC.vocabulary.accepts(told[0, 1])
    assert [told[0, k] for k in (0, 2)] == [plain[0, k] for k in (0, 2)]
    with pytest.raises(VLSegError, match="no room for an end in 4"):
        write(model, processor, rows, pixels, begins={(0, 1): box}, max_tokens=4)
    with pytest.raises(VLSegError, match="stands where"):
        write(model, processor, rows, pixels, begins={(0, 1): [*box, box[0]]})
