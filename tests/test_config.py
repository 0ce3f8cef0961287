import pytest

from espnet_adaltm.config import check_keys, load_yaml, nearest
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
