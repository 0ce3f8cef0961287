"""Frames' tokens to text, in our tokenizer and in transformers."""

import random

import pytest
import torch
from export_common import tokenizer
from transformers import AutoTokenizer

from espnet_adaltm.export.ctc_tokenizer import write_ctc_tokenizer
from espnet_adaltm.files import write_json
from espnet_adaltm.models.ctc import collapse


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("unigram", 24), ("bpe", 24)])
def test_random_paths_read_the_same(tmp_path, kind, size):
    ours = tokenizer(tmp_path, kind, size)
    assert any(len(token) > 2 for token in ours.tokens[2:-1]) == (kind != "char")
    write_json(tmp_path / "config.json", {"model_type": "wavlm"})
    write_ctc_tokenizer(tmp_path, ours.tokens)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    texts = set()
    for _ in range(300):
        tokens = [rng.choice((0, rng.randrange(ours.vocab_size))) for _ in range(rng.randrange(20))]
        path = [token for token in tokens for _ in range(rng.randrange(1, 4))]
        text = ours.decode(collapse(torch.tensor(path, dtype=torch.long)))
        assert theirs.decode(path) == text
        texts.add(text)
    assert "" in texts
    assert len(texts) > 200


def test_known_paths(tmp_path):
    ours = tokenizer(tmp_path, "char", None)
    write_json(tmp_path / "config.json", {"model_type": "wavlm"})
    write_ctc_tokenizer(tmp_path, ours.tokens)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = {token: index for index, token in enumerate(ours.tokens)}
    blank, mark, end = ids["<blank>"], ids["\u2581"], ids["<sos/eos>"]
    path = [mark, ids["d"], ids["o"], ids["o"], blank, ids["o"], mark, mark, blank, mark, ids["r"]]
    assert theirs.decode([*path, mark, end, blank]) == "doo r"
    assert theirs.decode([ids["<unk>"], blank, ids["<unk>"]]) == "<unk><unk>"
