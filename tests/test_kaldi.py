import pytest

from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp


@pytest.fixture
def path(tmp_path):
    return tmp_path / "text"


def test_round_trip_is_sorted_by_bytes(path):
    write_scp(path, {"é": "x y  z", "z": 3, "Z": 0.5})
    assert path.read_text(encoding="utf-8") == "Z 0.5\nz 3\né x y  z\n"
    assert list(read_scp(path).items()) == [("Z", "0.5"), ("z", "3"), ("é", "x y  z")]


def test_tabs_and_carriage_returns(path):
    path.write_bytes(b"a\tone  two \r\nb  three\r\n")
    assert read_scp(path) == {"a": "one  two", "b": "three"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1\nb 2\na 3\n", r":3: duplicate key 'a'"),
        (b"b 1\na 2\n", r":2: 'a' comes after 'b': sort"),
        (b"a 1\n \nb 2\n", r":2: empty line"),
        (b"a 1\nb\n", r":2: 'b' has no value"),
        (b"a caf\xe9\n", r":1: not UTF-8"),
    ],
)
def test_errors_name_file_and_line(path, content, message):
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_scp(path)
    assert str(path) in str(caught.value)


def test_missing_file(path):
    with pytest.raises(UserError, match="text does not exist"):
        read_scp(path)


def test_leniency_on_request(path):
    path.write_text("b 1\na\n")
    assert read_scp(path, require_sorted=False, allow_empty_value=True) == {"b": "1", "a": ""}
    path.write_text("b 1\nb 2\n")
    with pytest.raises(UserError, match="duplicate"):
        read_scp(path, require_sorted=False)
