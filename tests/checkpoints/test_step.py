"""A checkpoint folder gives back what was saved, and refuses at save time what would not load."""

import collections
import enum
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lit_gpt.checkpoints.step import (
    checkpoint_name,
    read_checkpoint,
    read_config,
    read_model_weights,
    read_weights,
    save_weights,
    step_of,
    to_plain,
    write_checkpoint,
)
from lit_gpt.errors import UserError


def test_names():
    assert checkpoint_name(1234) == "step-00001234.ckpt"
    assert step_of(Path("/a/step-00001234.ckpt")) == 1234
    assert step_of(Path("step-123456789012.ckpt")) == 123456789012
    assert step_of(Path(".tmp-step-00001234.ckpt-17")) is None


def test_equal_weights_are_equal_bytes(tmp_path):
    weights = {"b": torch.arange(5.0), "a": torch.ones(2, 3, dtype=torch.bfloat16), "größe": torch.zeros(1)}
    weights["tied"] = weights["b"]
    header = {"config": '{"n": "ä\\n\\u2028"}', "adapter": "null", "x\x01": "/\x7f"}
    names = [tmp_path / f"{number}.safetensors" for number in range(12)]
    for name in names:
        save_weights(weights, name, header)
    assert len({name.read_bytes() for name in names}) == 1
    assert all(torch.equal(value, weights[key]) for key, value in read_weights(names[0]).items())
    with safe_open(names[0], framework="pt") as file:
        assert header.items() <= file.metadata().items()


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, generator=generator)
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
    weights = {str(kind): values.to(kind) for kind in kinds}
    weights["scalar"], weights["empty"] = torch.tensor(3.5), torch.zeros(0, 4)
    weights["strided"] = values.view(8, 8).t()
    weights["nan"] = torch.tensor([float("nan"), float("-inf"), -0.0])
    write_checkpoint({"state_dict": weights}, tmp_path / "step-00000001.ckpt")
    read = read_checkpoint(tmp_path / "step-00000001.ckpt")["state_dict"]
    assert read.keys() == weights.keys()
    for name, value in weights.items():
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        assert read[name].reshape(-1).view(torch.uint8).equal(value.contiguous().reshape(-1).view(torch.uint8)), name


def test_a_tied_matrix_is_stored_once_and_comes_back_tied(tmp_path):
    matrix = torch.randn(1000, 8)
    weights = {"model.wte.weight": matrix, "model.lm_head.weight": matrix, "model.part": matrix[:3]}
    folder = tmp_path / "step-00000001.ckpt"
    write_checkpoint({"state_dict": weights}, folder)
    assert (folder / "model.safetensors").stat().st_size < 1.2 * matrix.nbytes
    read = read_checkpoint(folder)["state_dict"]
    assert read["model.lm_head.weight"] is read["model.wte.weight"]
    assert read["model.part"].equal(matrix[:3])


def test_the_rest_comes_back_as_it_was(tmp_path):
    moments = torch.randn(5)
    checkpoint = {
        "state_dict": {},
        "epoch": 3,
        "loops": {"fit_loop.state_dict": {"a": (1, 2.5, None, True, b"x", {1, 2})}},
        "optimizer_states": [{"state": {0: {"exp_avg": moments, "step": torch.tensor(3.0)}}, "param_groups": [{}]}],
        "lit_gpt": {"config": {"n_layer": 2, "layer_windows": None}},
        "shape": torch.Size([2, 3]),
        "kind": torch.bfloat16,
        "ordered": collections.OrderedDict(b=1, a=2),
        "counter": collections.Counter("aab"),
    }
    folder = tmp_path / "step-00000001.ckpt"
    write_checkpoint(checkpoint, folder)
    read = read_checkpoint(folder)
    assert read["optimizer_states"][0]["state"][0]["exp_avg"].equal(moments)
    for name in set(checkpoint) - {"optimizer_states"}:
        assert read[name] == checkpoint[name], name
    assert read_config(folder) == {"n_layer": 2, "layer_windows": None}


def test_averaged_weights_take_the_place_of_the_raw_ones(tmp_path):
    matrix, bias = torch.ones(4, 2, dtype=torch.bfloat16), torch.ones(2)
    weights = {"model.wte.weight": matrix, "model.lm_head.weight": matrix, "model.bias": bias, "other": bias.clone()}
    folder = tmp_path / "step-00000001.ckpt"
    write_checkpoint({"state_dict": weights, "ema": {"model.wte.weight": torch.full((4, 2), 3.0)}}, folder)
    raw, averaged = read_model_weights(folder, averaged=False), read_model_weights(folder)
    assert raw["wte.weight"].eq(1).all()
    assert set(averaged) == {"wte.weight", "lm_head.weight", "bias"}
    assert averaged["lm_head.weight"].eq(3).all()
    assert averaged["wte.weight"].dtype == torch.bfloat16
    assert averaged["bias"].eq(1).all()
    assert read_checkpoint(folder)["ema"]["model.wte.weight"].dtype == torch.float32


class Color(enum.Enum):
    RED = "red"


class Name(str):
    pass


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Path("a/b"), "a/b"),
        (np.float32(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (Color.RED, "red"),
        (Name("x"), "x"),
        (Point(1, np.int64(2)), (1, 2)),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        ({np.int64(1): Path("c")}, {1: "c"}),
    ],
)
def test_harmless_values_become_plain(value, plain):
    result = to_plain(value)
    assert result == plain
    assert type(result) is type(plain)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (lambda: 0, r"checkpoint\['a'\]\[1\]\['b'\] is a builtins.function"),
        (object(), "is a builtins.object"),
        (np.zeros(2), "is a numpy.ndarray"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (frozenset(), "frozenset"),
        (np.random.default_rng(0), "numpy.random"),
        (torch.optim.SGD, "is a builtins.type"),
    ],
)
def test_what_would_not_load_is_refused_by_its_place(tmp_path, value, place):
    folder = tmp_path / "step-00000001.ckpt"
    with pytest.raises(UserError, match=place):
        write_checkpoint({"state_dict": {}, "a": [0, {"b": value}]}, folder)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_tensors_are_refused(tmp_path):
    with pytest.raises(UserError, match="state_dict"):
        write_checkpoint({"state_dict": {"model._extra_state": 3}}, tmp_path / "step-00000001.ckpt")


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_refused_by_the_name_of_its_file(tmp_path, name, damage):
    folder = tmp_path / "step-00000001.ckpt"
    write_checkpoint({"state_dict": {"model.w": torch.randn(100)}, "epoch": 1}, folder)
    content = bytearray((folder / name).read_bytes())
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "truncated":
        (folder / name).write_bytes(content[:-7])
    else:
        content[len(content) // 2] ^= 0x10
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_checkpoint(folder)
    # a flipped bit in the manifest may be seen as a damaged file: it is refused all the same
    assert name in str(caught.value) or (name, damage) == ("manifest.json", "flipped")
