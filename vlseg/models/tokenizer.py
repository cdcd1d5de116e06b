"""A word-level tokenizer for models trained from scratch: whole words of a world, single characters for the rest."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from vlseg.models.configuration import REJ_TOKEN, SEG_TOKEN

PAD, UNKNOWN, IMAGE, END = "[PAD]", "[UNK]", "<image>", "<end>"


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer that knows `words`, every ASCII character, and the control tokens.

    A word outside the list becomes its characters ("zyx" is z ##y ##x), so nothing a person types is lost.
    """
    characters = string.ascii_lowercase + string.digits
    pieces = [PAD, UNKNOWN, IMAGE, END, SEG_TOKEN, REJ_TOKEN]
    pieces += list(string.punctuation) + list(characters) + [f"##{c}" for c in characters]
    pieces += sorted(set(words) - set(pieces))
    model = WordPiece({p: i for i, p in enumerate(pieces)}, unk_token=UNKNOWN, max_input_chars_per_word=60)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[IMAGE, SEG_TOKEN, REJ_TOKEN],
    )
