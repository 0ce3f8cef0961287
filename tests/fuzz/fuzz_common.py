"""What is drawn, and how often; the same examples everywhere."""

from hypothesis import settings
from hypothesis import strategies as st

from espnet_adaltm.errors import UserError


def fuzz(examples):
    """So many examples, from a fixed seed."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None)


def valid(work, *arguments, **options):
    """The result, or None for an error that a user can read; nothing else may be raised."""
    try:
        return work(*arguments, **options)
    except UserError as error:
        assert str(error)
        return None


# Words as they stand in tables, and characters that have broken some reader or other.
ODD = "\t\r\n\x00\x0b\x1c\x85\xa0\xad\u2028\u202e\ufeff|=:/\\'\"<&\u0663é漢\U0001f600"
chars = st.one_of(st.sampled_from("abz019-_. "), st.sampled_from(ODD), st.characters(codec="utf-8"))
texts = st.text(chars, max_size=12)
words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=6)
plain = st.sampled_from(["a", "b", "c", "a-1", "é", "Z"])
lines = words.flatmap(lambda first: st.tuples(st.just(first), words, words)).map(" ".join)
numbers = st.one_of(st.floats(), st.integers(), st.just(-0.0))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(words, st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)
