# The constructors of transformers are typed for calls by hand; here settings come as dicts.
# mypy: disable-error-code="arg-type, assignment, attr-defined, dict-item, misc, operator, var-annotated"
"""Random checkpoints of the models that write where things are, which can write for a few queries and pictures.

Everything is random but the output layer: it is solved, in closed form, so that the state before each token of a given
answer predicts that token. What they write can therefore be read, differs from query to query and from picture to
picture, and comes from the real class through its real `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, LogitsProcessor, LogitsProcessorList

from vlseg.models.specimens import SPECIMENS, tokenizer_of
from vlseg.systems.specimens import HALF, QUERIES, pictures, spread


def write_qwen3_vl(folder: Path) -> None:
    """Qwen3-VL that writes two boxes a query."""
    _write_qwen("qwen3-vl", folder)


def write_qwen25_vl(folder: Path) -> None:
    """Qwen2.5-VL that writes two boxes a query."""
    _write_qwen("qwen2.5-vl", folder)


def _write_qwen(name: str, folder: Path) -> None:
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    from vlseg.systems.qwen_vl_sam2 import PROMPT

    kind, make, special, template, settings = SPECIMENS[name]
    tokenizer = tokenizer_of(special, template)
    numbers = [f"{number}, " for number in range(0, 1000, 10)]
    tokenizer.add_tokens(['[{"bbox_2d": [', '0]}, {"bbox_2d": [', "0]}]", *numbers])
    kept = {key: value for key, value in settings.items() if key != "image_processor_type"}
    parts: dict[str, Any] = {"image_processor": Qwen2VLImageProcessor(**kept), "tokenizer": tokenizer}
    if name == "qwen3-vl":
        processor = Qwen3VLProcessor(**parts, video_processor=Qwen3VLVideoProcessor(), chat_template=template)
    else:
        processor = Qwen2_5_VLProcessor(**parts, video_processor=Qwen2VLVideoProcessor(), chat_template=template)
    processor.save_pretrained(folder)
    config = make(tokenizer.get_vocab(), len(tokenizer))
    config["text_config"] |= {"hidden_size": 512, "intermediate_size": 64, "tie_word_embeddings": False}
    if name == "qwen2.5-vl":
        config["text_config"]["rope_parameters"] |= {"mrope_section": [16, 24, 24]}
    config["vision_config"] |= {"out_hidden_size": 512}
    config |= {"tie_word_embeddings": False}
    model = _random(kind, config, factor=1.5)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rng = np.random.default_rng(0)
    prompts, answers = [], []
    for image in pictures():
        for text in QUERIES:
            content = [{"type": "image"}, {"type": "text", "text": PROMPT.format(words=text)}]
            asked = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            prompts.append(processor(text=[asked], images=[image], return_tensors="pt"))
            scale = (1000, 1000) if name == "qwen3-vl" else (image.width, image.height)
            # the last number of a box ends in the piece's own 0
            boxes = [_box(rng, scale) for _ in range(2)]
            said = '[{"bbox_2d": [' + '0]}, {"bbox_2d": ['.join(
                "".join(f"{n // 10 * 10}, " for n in box[:3]) + str(box[3] // 10) for box in boxes
            )
            answers.append([*tokenizer(said + "0]}]")["input_ids"], model.generation_config.eos_token_id])
    _teach(model, model.lm_head, prompts, answers)
    model.save_pretrained(folder)


def write_paligemma(folder: Path) -> None:
    """PaliGemma 2 that writes two objects a query, boxes and codes, and a random `vae-oid.npz` beside it."""
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    kind, make, special, template, _ = SPECIMENS["paligemma2"]
    plain = tokenizer_of(special, template, spaced=True)
    plain.eos_token = "<eos>"
    images = SiglipImageProcessor(size={"height": 64, "width": 64}, **HALF)
    images.image_seq_length = 64
    processor = PaliGemmaProcessor(images, plain)
    processor.save_pretrained(folder)
    tokenizer = processor.tokenizer
    config = make(tokenizer.get_vocab(), len(tokenizer))
    config["text_config"] |= {"hidden_size": 1024, "intermediate_size": 64, "tie_word_embeddings": False}
    config |= {"projection_dim": 1024, "hidden_size": 1024, "tie_word_embeddings": False}
    config["image_token_index"] = tokenizer.convert_tokens_to_ids("<image>")
    model = _random(kind, config, factor=2.0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    rng = np.random.default_rng(1)
    prompts, answers = [], []
    for image in pictures():
        for text in QUERIES:
            inputs = processor(text=[f"<image>segment {text}"], images=[image], return_tensors="pt")
            inputs.pop("labels", None)
            prompts.append(inputs)
            said = ""
            for _ in range(2):
                x0, y0, x1, y1 = _box(rng, (1024, 1024))
                said += "".join(f"<loc{n:04d}>" for n in (y0, x0, y1, x1))
                said += "".join(f"<seg{n:03d}>" for n in rng.permutation(128)[:16])
            tokens = [tokenizer.convert_tokens_to_ids(f"<{piece}>") for piece in said[1:-1].split("><")]
            answers.append([*tokens, tokenizer.eos_token_id])
    _teach(model, model.lm_head, prompts, answers)
    model.save_pretrained(folder)
    write_mask_decoder(folder / "vae-oid.npz")


def write_mask_decoder(path: Path, seed: int = 0) -> None:
    """Random weights under the names of `vae-oid.npz`, whose masks are about half full."""
    from vlseg.systems.paligemma_masks import MaskDecoder

    torch.manual_seed(seed)
    decoder = MaskDecoder(depth=16, width=16)
    with torch.no_grad():
        decoder.codebook.normal_()
        spread(decoder, 3.0)
        for name, bias in decoder.named_parameters():
            if name.endswith("bias"):
                bias.normal_(std=0.1)
        made = decoder(torch.randint(0, 128, (64, 16)))
        decoder.decoder[-1].bias.sub_(made.median() - 0.1 * made.std())
    arrays = {name.replace("codebook", "_vq_vae._embedding"): value for name, value in decoder.state_dict().items()}
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})


def write_florence2(folder: Path) -> None:
    """Florence-2 that writes one polygon of eight points a query."""
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        PreTrainedTokenizerFast,
    )

    from vlseg.systems.florence2 import TASK

    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>", "<sep>", "<poly>", "</poly>"]
    special += [f"<loc_{number}>" for number in range(1000)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate([*special, *alphabet])}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    square = {"height": 64, "width": 64}
    images = CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False, **HALF)
    images.image_seq_length = 5
    processor = Florence2Processor(images, tokenizer, post_processor_config={"polygons": {}})
    processor.save_pretrained(folder)
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 512,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 1200,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
        "tie_word_embeddings": False,
    }
    vision = {"embed_dim": [16, 16, 16, 16], "num_heads": [2] * 4, "num_groups": [2] * 4, "depths": [1] * 4}
    vision |= {"window_size": 4, "projection_dim": 512}
    config = Florence2Config(
        text_config=text, vision_config=vision, image_token_id=4, is_encoder_decoder=True, tie_word_embeddings=False
    )
    torch.manual_seed(4)
    model = Florence2ForConditionalGeneration(config)
    spread(model, 4.0)
    model.eval()
    for name, token in (("bos", 0), ("pad", 1), ("eos", 2), ("decoder_start", 2)):
        setattr(model.generation_config, f"{name}_token_id", token)
    model.generation_config.forced_bos_token_id = model.generation_config.forced_eos_token_id = None
    rng = np.random.default_rng(2)
    prompts, answers = [], []
    for image in pictures():
        for query in QUERIES:
            prompts.append(processor(text=[f"{TASK}{query}"], images=[image], return_tensors="pt"))
            turns = np.sort(rng.uniform(0, 2 * np.pi, 8))
            points = 500 + rng.uniform(150, 480, 8)[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
            said = [f"<loc_{int(n)}>" for n in points.reshape(-1)]
            answers.append([*tokenizer.convert_tokens_to_ids(said), 2])
    _teach(model, model.lm_head, prompts, answers)
    model.save_pretrained(folder)


def _box(rng: np.random.Generator, scale: tuple[int, int]) -> list[int]:
    """x0, y0, x1, y1 of a box that covers 10-60 % of an image of that scale."""
    low, high = rng.uniform(0.02, 0.3, 2), rng.uniform(0.6, 0.98, 2)
    return [int(v * s) for v, s in zip([*low, *high], [*scale, *scale], strict=True)]


def _random(kind: str, config: dict[str, Any], factor: float = 4.0) -> Any:
    torch.manual_seed(5)
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[kind](**config))
    spread(model, factor)
    return model.eval()


class _Dictation(LogitsProcessor):
    """Lets the model write one given answer."""

    def __init__(self, answer: Sequence[int]):
        self.answer, self.step = answer, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.answer[self.step]] = 0
        self.step += 1
        return forced


@torch.no_grad()
def _teach(
    model: Any, head: Any, prompts: Sequence[Any], answers: Sequence[Sequence[int]], margin: float = 12.0
) -> None:
    """Solve the output layer so that each prompt is answered with its answer: ridge regression in float64."""
    states, targets = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        settings = {"do_sample": False, "return_dict_in_generate": True, "output_hidden_states": True}
        dictation = LogitsProcessorList([_Dictation(answer)])
        out = model.generate(**prompt, **settings, max_new_tokens=len(answer), logits_processor=dictation)
        steps = out.decoder_hidden_states if model.config.is_encoder_decoder else out.hidden_states
        states += [step[-1][0, -1] for step in steps]
        targets += answer[: len(steps)]
    x = torch.stack(states).double()
    wanted = torch.zeros(len(x), head.out_features, dtype=torch.float64)
    wanted[torch.arange(len(x)), torch.tensor(targets)] = 12.0
    gram = x @ x.T
    gram += 1e-9 * gram.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
    head.weight.copy_((x.T @ torch.linalg.solve(gram, wanted)).T.to(head.weight.dtype))
    right = (head(torch.stack(states)).argmax(-1) == torch.tensor(targets)).float().mean()
    assert right == 1, f"{right:.1%} of {len(x)} tokens are learned"
