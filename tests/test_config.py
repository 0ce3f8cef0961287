import pytest

from espnet_adaltm.config import as_numbers, check_choice, check_keys, load_yaml, nearest
from espnet_adaltm.errors import UserError


def test_load_yaml(tmp_path):
    (tmp_path / "x.yaml").write_text("lr: 1.0e-4\nname: ż\n", encoding="utf-8")
    assert load_yaml(tmp_path / "x.yaml") == {"lr": 1e-4, "name": "ż"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("a: [1", "not valid YAML"),
        ("- a\n", "found list"),
        ("", "found NoneType"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_unusable_yaml_names_the_file(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)


def test_nearest():
    assert nearest("poolin", ["loss", "pooling"]) == " (did you mean 'pooling'?)"
    assert nearest("xyz", ["loss", "pooling"]) == ""


def test_check_keys():
    check_keys({"loss": 1}, ["loss", "pooling"], "x.yaml")
    with pytest.raises(UserError) as caught:
        check_keys({"loss": 1, "poolin": 2}, ["loss", "pooling"], "x.yaml")
    assert str(caught.value) == (
        "x.yaml: unknown key 'poolin' (did you mean 'pooling'?); known: loss, pooling"
    )


def test_text_that_means_a_number_becomes_one_at_any_depth():
    given = {"a": "1e-4", "b": ["2", {"c": "-.5e1"}], "d": "fast", "e": 3, "f": None, "g": True}
    meant = {"a": 1e-4, "b": [2.0, {"c": -5.0}], "d": "fast", "e": 3, "f": None, "g": True}
    assert as_numbers(given) == meant
    assert given["a"] == "1e-4"


def test_an_unknown_choice_lists_the_known_ones():
    check_choice("kind", "b", ("a", "b"))
    for value in ("c", ["a"], None):
        with pytest.raises(UserError, match="kind .* is unknown: use a, b"):
            check_choice("kind", value, ("a", "b"))
