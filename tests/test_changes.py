"""What changed, in few words."""

import pytest

from espnet_adaltm.changes import changes


def described(*command: str, **hashes: str) -> dict:
    return {"command": list(command), "inputs": {f"{n}.txt": [1, 1, h] for n, h in hashes.items()}}


ORDER = "command (order or spaces of its options)"
SYSTEMS = [f"name{i}=exp/merge_name{i}_seed1" for i in range(50)]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (["p", "--lr", "1"], ["p", "--lr", "2"], ["--lr (1 -> 2)"]),
        (["p", "--lr=1"], ["p", "--lr=2"], ["--lr (1 -> 2)"]),
        (["p", "-c", "a"], ["p", "-c", "b"], ["command (a -> b)"]),
        (["p"], ["p", "--fast"], ["--fast (now given)"]),
        (["p"], ["p", "--lr", "2"], ["--lr (now 2)"]),
        (["p", "--lr", "2"], ["p"], ["--lr (no longer given)"]),
        (["p", "--a", "1", "--b"], ["p", "--b", "--a", "1"], [ORDER]),
        (["p", "--s", "a b c"], ["p", "--s", "b a c"], ["--s (in another order)"]),
        (["p", "--s", "a", "a"], ["p", "--s", "a"], ["--s (another number of times)"]),
        (["p", "--s", "a b c"], ["p", "--s", "a"], ["--s (now without b, c)"]),
        (["p", "--s", "a"], ["p", "--s", "a", "--lr", "1"], ["--lr (now 1)"]),
        (["p", "--a", "1", "--b=2"], ["p", "--a", "3", "--b=4"], ["--a (1 -> 3)", "--b (2 -> 4)"]),
        (
            ["p", "--systems", " ".join(SYSTEMS[:1])],
            ["p", "--systems", " ".join(SYSTEMS)],
            [f"--systems (now with {SYSTEMS[1]}, {SYSTEMS[2]} and 47 more)"],
        ),
        (["p", "--n", "x" * 900], ["p", "--n", "y"], [f"--n ({'x' * 57}... -> y)"]),
        (["p", "--n", "1"], ["p", "--n", "1"], []),
    ],
)  # fmt: skip
def test_options_are_named_and_cut_short(old, new, told):
    assert changes(described(*old), described(*new)) == told


def test_inputs_after_options():
    old = described("p", "--lr", "1", a="1", b="1", gone="1")
    new = described("p", "--lr", "2", a="1", b="2", come="1")
    told = ["--lr (1 -> 2)", "b.txt", "gone.txt (no longer an input)", "come.txt (now an input)"]
    assert changes(old, new) == told
