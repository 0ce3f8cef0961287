"""CTC tokens for `transformers`: frames' best tokens to text, as `data.tokens.Tokenizer` does it.

`Wav2Vec2CTCTokenizer` knows characters only: of a sentencepiece it would leave the word mark in the
text. Here repeats and blanks go first, then pieces are joined, then word marks become blanks. Only
decoding is translated: encoding a text needs sentencepiece's own rules, which are in
``tokens.model``.
"""

from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.data.tokens import BLANK, SOS_EOS, UNK

_WORD_MARK = "\u2581"


def write_ctc_tokenizer(folder: Path, tokens: Sequence[str]) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, which `AutoTokenizer` loads.

    Args:
        folder: Where to.
        tokens: Every token, position = id, as `Tokenizer.tokens`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    backend.decoder = decoders.Sequence(
        [
            # collapses repeats, then drops the blank; the delimiter is for one-character tokens
            decoders.CTC(pad_token=BLANK, word_delimiter_token=_WORD_MARK, cleanup=False),
            decoders.Replace(_WORD_MARK, " "),
            decoders.Replace(SOS_EOS, ""),
            decoders.Fuse(),
            decoders.Replace(Regex(" +"), " "),
            # as a replacement: `Strip` breaks off on an empty text
            decoders.Replace(Regex("^ | $"), ""),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=BLANK,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
