import pickle

import pytest

from espnet_adaltm.bin import prepare_tokens as program
from espnet_adaltm.data.tokens import Tokenizer, prepare_tokens, train_tokens
from espnet_adaltm.errors import UserError

ENGLISH = [f"the {a} {b} is very {c} today" for a in ("big", "old", "red") for b in ("dog", "house",
           "boat") for c in ("calm", "loud", "bright")]  # fmt: skip
POLISH = ["Zażółć gęślą jaźń", "Kot ma Alę", "ŻÓŁĆ i ćma"]
TEXT = ENGLISH + POLISH


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(f"u{i:03} {line}\n" for i, line in enumerate(TEXT)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("unigram", 42), ("bpe", 70)])
def test_round_trip_and_order_of_tokens(tmp_path, text, kind, size):
    tokenizer = prepare_tokens(text, tmp_path / "out", kind, size)
    lines = (tmp_path / "out/tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["<blank>", "<unk>"]
    assert lines[-1] == "<sos/eos>"
    assert len(set(lines)) == len(lines) == tokenizer.vocab_size == (size or len(lines))
    for sentence in TEXT:
        ids = tokenizer.encode(sentence)
        assert tokenizer.decode(ids) == sentence
        assert "".join(lines[i] for i in ids).replace("\u2581", " ").strip() == sentence
        assert min(ids) > 0 and max(ids) < tokenizer.vocab_size - 1


def test_char_covers_exactly_the_characters(tmp_path, text):
    tokenizer = prepare_tokens(text, tmp_path / "out", "char")
    characters = {c for line in TEXT for c in line} - {" "} | {"\u2581"}
    assert set(tokenizer.tokens[2:-1]) == characters


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("unigram", 42), ("bpe", 70)])
def test_same_text_same_bytes_wherever_it_lies(tmp_path, text, kind, size):
    first, second = tmp_path / "a/tokens", tmp_path / "elsewhere/b"
    prepare_tokens(text, first, kind, size)
    prepare_tokens(text, second, kind, size)
    model = (first / "tokens.model").read_bytes()
    assert model == (second / "tokens.model").read_bytes()
    assert (first / "tokens.txt").read_bytes() == (second / "tokens.txt").read_bytes()
    assert str(tmp_path).encode() not in model


def test_unknown_characters(tmp_path, text):
    tokenizer = prepare_tokens(text, tmp_path / "out", "char")
    ids = tokenizer.encode("do 7")
    assert ids.count(1) == 1
    assert tokenizer.decode(ids) == "do <unk>"
    assert tokenizer.encode("") == []
    assert tokenizer.decode([0, tokenizer.vocab_size - 1]) == ""
    with pytest.raises(ValueError, match="999"):
        tokenizer.decode([999])


def test_lowercase_happens_inside_the_model(tmp_path, text):
    tokenizer = prepare_tokens(text, tmp_path / "out", "char", lowercase=True)
    assert tokenizer.decode(tokenizer.encode("ŻÓŁĆ Kot")) == "żółć kot"
    assert tokenizer.normalize("  ŻÓŁĆ   Kot ") == "żółć kot"
    plain = prepare_tokens(text, tmp_path / "plain", "char")
    assert plain.normalize("ŻÓŁĆ Kot") == "ŻÓŁĆ Kot"


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_too_large_vocabulary_names_a_value_that_works(tmp_path, text, kind):
    with pytest.raises(UserError, match="--vocab_size 5000 is too large") as caught:
        prepare_tokens(text, tmp_path / "out", kind, 5000)
    assert not (tmp_path / "out").exists()
    limit = int(str(caught.value).split("possible value is ")[1].split(";")[0])
    assert prepare_tokens(text, tmp_path / "out", kind, limit).vocab_size == limit
    soft = prepare_tokens(text, tmp_path / "soft", kind, 5000, soft_vocab=True)
    assert soft.vocab_size == limit
    with pytest.raises(UserError, match="too large"):
        prepare_tokens(text, tmp_path / "more", kind, limit + 1)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_small_vocabulary_names_a_value_that_works(kind):
    with pytest.raises(UserError, match="--vocab_size 10 is too small.*at least ") as caught:
        train_tokens(TEXT, kind, 10)
    least = int(str(caught.value).rsplit(" ", 1)[1])
    assert train_tokens(TEXT, kind, least)
    with pytest.raises(UserError, match="too small"):
        train_tokens(TEXT, kind, least - 1)


def test_long_transcripts_count(tmp_path):
    (tmp_path / "tokens.model").write_bytes(train_tokens(["ab " * 3000 + "\u0119", "a"], "char"))
    assert "\u0119" in Tokenizer(tmp_path).tokens


@pytest.mark.parametrize(
    ("texts", "kind", "size", "culprit"),
    [
        ([], "char", None, "no text"),
        (["  "], "char", None, "no text"),
        (["a b"], "word", None, "'word'"),
        (["a b"], "bpe", None, "--vocab_size is needed"),
        (["a b"], "char", 3, "--vocab_size 3"),
    ],
)
def test_wrong_arguments(texts, kind, size, culprit):
    with pytest.raises(UserError, match=culprit):
        train_tokens(texts, kind, size)


def test_a_pickled_tokenizer_works(tmp_path, text):
    tokenizer = prepare_tokens(text, tmp_path / "out", "bpe", 70)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXT[0]) == tokenizer.encode(TEXT[0])
    assert copy.tokens == tokenizer.tokens


def test_tokens_of_another_model(tmp_path, text):
    folder = tmp_path / "out"
    tokenizer = prepare_tokens(text, folder, "char")
    lines = list(tokenizer.tokens)
    lines[4], lines[5] = lines[5], lines[4]
    (folder / "tokens.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="tokens.txt.* at id 4"):
        Tokenizer(folder)
    assert Tokenizer(folder / "tokens.model").tokens == tokenizer.tokens
    with pytest.raises(UserError, match=f"expert.json.*at id {len(lines) - 1}"):
        tokenizer.check_tokens(tokenizer.tokens[:-1], "expert.json")


@pytest.mark.parametrize(("content", "culprit"), [(None, "missing"), (b"x" * 99, "no sentencepie")])
def test_missing_and_damaged_models(tmp_path, content, culprit):
    if content:
        (tmp_path / "tokens.model").write_bytes(content)
    with pytest.raises(UserError, match=f"tokens.model.*{culprit}"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "culprit"),
    [(b"u1 caf\xe9\n", "text:1: not UTF-8"), (b"u1 a\nu2\n", "text:2"), (b"", "text is empty")],
)
def test_bad_text_leaves_nothing(tmp_path, capsys, content, culprit):
    (tmp_path / "text").write_bytes(content)
    out = tmp_path / "tokens"
    with pytest.raises(SystemExit, match="1"):
        program.main(["--text", str(tmp_path / "text"), "--type", "char", "--out", str(out)])
    assert culprit in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_program(tmp_path, text, capsys):
    out = tmp_path / "tokens/unigram42"
    program.main(["--text", str(text), "--vocab_size", "42", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: 42 tokens\n"
    assert sorted(path.name for path in out.iterdir()) == ["tokens.model", "tokens.txt"]
