"""Safetensors piece by piece: the same bytes as the package, and errors for anything damaged."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.tensor_file import Spec, TensorFile, TensorWriter, write_tensor_file

TENSORS = {
    "b": torch.randn(3, 4),
    "a": torch.randn(5).bfloat16(),
    "c.half": torch.ones(2, dtype=torch.float16),
    "double": torch.ones(3, dtype=torch.float64),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 2),
    "i64": torch.arange(3),
    "i32": torch.ones(3, dtype=torch.int32),
    "i16": torch.ones(3, dtype=torch.int16),
    "i8": torch.ones(3, dtype=torch.int8),
    "u8": torch.ones(3, dtype=torch.uint8),
    'é"x': torch.tensor([True, False, True]),
}


def test_the_bytes_are_those_of_the_package(tmp_path):
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": 'p"té'})
    write_tensor_file(tmp_path / "ours", TENSORS, {"format": 'p"té'})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    save_file({"x": torch.ones(1)}, tmp_path / "theirs")
    write_tensor_file(tmp_path / "ours", {"x": torch.ones(1)})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_and_pieces_come_back(tmp_path):
    save_file(TENSORS, tmp_path / "file", metadata={"format": "pt"})
    with TensorFile(tmp_path / "file") as file:
        assert file.metadata == {"format": "pt"}
        assert file.specs == {name: Spec.of(tensor) for name, tensor in TENSORS.items()}
        assert all(torch.equal(file.read(name), tensor) for name, tensor in TENSORS.items())
        out = torch.empty(4)
        file.read_into("b", 5, out)
    assert torch.equal(out, TENSORS["b"].flatten()[5:9])


def test_pieces_may_be_written_in_any_order(tmp_path):
    tensor = torch.arange(10.0).reshape(2, 5)
    with TensorWriter(tmp_path / "file", {"x": Spec.of(tensor)}) as writer:
        writer.write("x", tensor.flatten()[6:], 6)
        writer.write("x", tensor.flatten()[:6])
    assert torch.equal(load_file(tmp_path / "file")["x"], tensor)


def test_what_does_not_fit_or_is_forgotten_is_refused(tmp_path):
    spec = {"x": Spec(torch.float32, (4,))}
    with TensorWriter(tmp_path / "file", spec) as writer:
        with pytest.raises(ValueError, match="does not fit"):
            writer.write("x", torch.zeros(4, dtype=torch.float64))
        with pytest.raises(ValueError, match="does not fit"):
            writer.write("x", torch.zeros(2), 3)
        writer.write("x", torch.zeros(4))
    forgotten = pytest.raises(RuntimeError, match="'x' was not written to its end")
    with forgotten, TensorWriter(tmp_path / "file", spec) as writer:
        writer.write("x", torch.zeros(3))


def damaged(change):
    """Bytes of a file with one tensor, its header changed."""
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header is longer"),
        (b"\xff" * 20, "header is longer"),
        ((4).to_bytes(8, "little") + b"abcd", "Expecting value"),
        ((2).to_bytes(8, "little") + b"[]", "header is no mapping"),
        (damaged(lambda h: h["x"].update(dtype="F4")), "unsupported dtype F4"),
        (damaged(lambda h: h["x"].update(shape=[3])), "8 bytes for"),
        (damaged(lambda h: h["x"].pop("shape")), "no entry 'shape'"),
        (damaged(lambda h: h["x"].update(shape=[1], data_offsets=[4, 8])), "do not join"),
        (damaged(lambda h: h["x"].update(shape=[1], data_offsets=[0, 4])), "it has 8"),
        (damaged(lambda h: None)[:-1], "tells of 8 bytes, it has 7"),
    ],
)
def test_damaged_files_are_told(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"not a readable safetensors file .*{message}"):
        TensorFile(path)


def test_missing_files_and_files_cut_while_open_are_told(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        TensorFile(tmp_path / "none")
    path = tmp_path / "file"
    save_file({"x": torch.ones(1000)}, path)
    with TensorFile(path) as file:
        with open(path, "rb+") as handle:
            handle.truncate(200)
        with pytest.raises(UserError, match="'x' is unreadable .*end of the file"):
            file.read("x")
