"""Sentencepiece tokens for CTC: training, and text to ids and back.

``tokens.txt`` holds one token per line, line number = id: ``<blank>``, ``<unk>``, the pieces, and
``<sos/eos>``, which is ESPnet's order; id = sentencepiece's id + 1. Training uses one thread and no
file names, so the same text gives the same bytes. Run it with
``python -m espnet_adaltm.bin.prepare_tokens``.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir, read_text, require
from espnet_adaltm.kaldi import read_scp

TYPES = ("char", "unigram", "bpe")
BLANK, UNK, SOS_EOS = "<blank>", "<unk>", "<sos/eos>"
MODEL_FILE, TOKENS_FILE = "tokens.model", "tokens.txt"
# `<blank>` and `<sos/eos>` are ours; `<unk>` is sentencepiece's id 0 as well.
_OURS = 2
_TOO_HIGH = re.compile(r"value <= (\d+)")
_TOO_LOW = re.compile(r"required_chars\. \d+ vs (\d+)")


def train_tokens(
    texts: Iterable[str],
    kind: str,
    vocab_size: int | None = None,
    *,
    lowercase: bool = False,
    soft_vocab: bool = False,
) -> bytes:
    """Train a sentencepiece model that covers every character of ``texts``.

    Args:
        texts: Transcripts.
        kind: ``char``, ``unigram`` or ``bpe``.
        vocab_size: Number of tokens, ``<blank>``, ``<unk>`` and ``<sos/eos>`` included. Only
            ``char`` may go without: then every character is a token.
        lowercase: Fold case (``nmt_nfkc_cf``) inside the model instead of plain ``nmt_nfkc``.
        soft_vocab: Take the largest possible vocabulary if ``vocab_size`` is too large.

    Returns:
        The serialised model; the same for the same arguments.

    Raises:
        UserError: No text, or a vocabulary too large or too small, with the limit.
    """
    import sentencepiece

    if kind not in TYPES:
        raise UserError(f"token type {kind!r} is none of {', '.join(TYPES)}")
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise UserError("no text to train tokens from: the training set needs transcripts")
    if vocab_size is None and kind != "char":
        raise UserError(f"--vocab_size is needed for {kind} tokens")
    pieces = 1 << 20 if vocab_size is None else vocab_size - _OURS
    if pieces < 2:
        raise UserError(f"--vocab_size {vocab_size} is too small: at least 4 is expected")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=pieces,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            # Every transcript counts, however long; the default skips lines over 4192 bytes.
            max_sentence_length=max(4192, *(len(text.encode()) for text in texts)) + 1,
            hard_vocab_limit=not (soft_vocab or kind == "char"),
            num_threads=1,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(error, kind, vocab_size) from error
    found = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    if kind == "char" and vocab_size is not None and found < pieces and not soft_vocab:
        raise _too_large(kind, vocab_size, found + _OURS)
    return model.getvalue()


def _too_large(kind: str, vocab_size: int | None, limit: int) -> UserError:
    return UserError(
        f"--vocab_size {vocab_size} is too large for {kind} tokens of this text: the largest "
        f"possible value is {limit}; use that, or --soft_vocab"
    )


def _explain(error: RuntimeError, kind: str, vocab_size: int | None) -> Exception:
    if high := _TOO_HIGH.search(str(error)):
        return _too_large(kind, vocab_size, int(high[1]) + _OURS)
    if low := _TOO_LOW.search(str(error)):
        return UserError(
            f"--vocab_size {vocab_size} is too small: {kind} tokens need every character of the "
            f"text, at least {int(low[1]) + _OURS}"
        )
    return UserError(f"sentencepiece cannot train {kind} tokens: {error}")


def prepare_tokens(
    text: Pathlike,
    out_dir: Pathlike,
    kind: str,
    vocab_size: int | None = None,
    *,
    lowercase: bool = False,
    soft_vocab: bool = False,
) -> "Tokenizer":
    """Train tokens on a Kaldi ``text`` file and write ``tokens.model`` and ``tokens.txt``.

    Args:
        text: ``dump/<train>/text``.
        out_dir: Folder to write, replaced as a whole.
        kind: ``char``, ``unigram`` or ``bpe``.
        vocab_size: See `train_tokens`.
        lowercase: See `train_tokens`.
        soft_vocab: See `train_tokens`.

    Raises:
        UserError: See `train_tokens`; or an unreadable text. Nothing is written then.
    """
    transcripts = read_scp(require(text, "the audio stage"))
    model = train_tokens(
        transcripts.values(), kind, vocab_size, lowercase=lowercase, soft_vocab=soft_vocab
    )
    with atomic_dir(out_dir) as temporary:
        (temporary / MODEL_FILE).write_bytes(model)
        tokens = Tokenizer(temporary / MODEL_FILE).tokens
        content = "".join(f"{token}\n" for token in tokens)
        (temporary / TOKENS_FILE).write_text(content, encoding="utf-8", newline="\n")
    return Tokenizer(out_dir)


class Tokenizer:
    """Text to token ids and back; picklable.

    Args:
        path: A folder with ``tokens.model`` (and ``tokens.txt``, which must fit), or a model file.

    Attributes:
        tokens: Every token; position = id.

    Raises:
        UserError: A missing or damaged model, or a ``tokens.txt`` of another one.
    """

    def __init__(self, path: Pathlike) -> None:
        import sentencepiece

        path = Path(path)
        model = path / MODEL_FILE if path.is_dir() else path
        try:
            self._model = sentencepiece.SentencePieceProcessor(
                model_proto=require(model, "the tokens stage").read_bytes()
            )
        except RuntimeError as error:
            raise UserError(f"{model} is no sentencepiece model: delete it and run the tokens "
                            "stage") from error  # fmt: skip
        pieces = [self._model.id_to_piece(i) for i in range(self._model.vocab_size())]
        self.tokens: tuple[str, ...] = (BLANK, *pieces, SOS_EOS)
        listed = path / TOKENS_FILE
        if path.is_dir() and listed.exists():
            lines = read_text(listed).removesuffix("\n").split("\n")
            self.check_tokens(lines, str(listed))

    def check_tokens(self, tokens: Sequence[str], where: str) -> None:
        """Refuse a token list (e.g. of a checkpoint) that is not this model's."""
        if tuple(tokens) != self.tokens:
            pairs = zip([*tokens, None], [*self.tokens, None])
            index = next(i for i, (theirs, ours) in enumerate(pairs) if theirs != ours)
            raise UserError(
                f"{where}: the token list does not fit {MODEL_FILE} at id {index} "
                f"({len(tokens)} against {self.vocab_size} tokens): use the folder it came from"
            )

    @property
    def vocab_size(self) -> int:
        """Number of tokens: lines of ``tokens.txt``."""
        return len(self.tokens)

    def serialized(self) -> bytes:
        """The content of ``tokens.model``."""
        return self._model.serialized_model_proto()

    def normalize(self, text: str) -> str:
        """The text as the model sees it: NFKC, blanks squeezed, case folded if so trained."""
        return self._model.normalize(text).replace("\u2581", " ").strip()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; characters outside the vocabulary give ``<unk>``, id 1."""
        return [piece + 1 for piece in self._model.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; ``<blank>`` and ``<sos/eos>`` vanish, ``<unk>`` stays visible.

        Raises:
            ValueError: An id outside the vocabulary.
        """
        words = []
        for index in ids:
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"token id {index} is outside 0 to {self.vocab_size - 1}")
            token = self.tokens[index]
            if token not in (BLANK, SOS_EOS):
                words.append(token)
        return " ".join("".join(words).replace("\u2581", " ").split())
