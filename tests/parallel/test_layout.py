"""Axis sizes, their mesh, and what cannot be divided."""

import pytest
import torch.distributed as dist
from processes import spawn

from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig, MoEConfig
from lit_gpt.parallel import Layout, check_model
from lit_gpt.parallel.layout import AXES, GROUPS, fsdp_mesh

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 64}


@pytest.mark.parametrize(
    ("world_size", "sizes", "data"),
    [
        (1, {}, 1),
        (8, {}, 8),
        (8, {"tensor": 2}, 4),
        (16, {"tensor": 2, "replicate": 2, "context": 2, "pipeline": 2}, 1),
        (8, {"data": 2, "replicate": 4}, 2),
        (8, {"data": 2, "context": 4, "expert": 8}, 2),
    ],
)
def test_auto_takes_the_rest(world_size, sizes, data):
    layout = Layout.resolve(world_size, **sizes)
    assert (layout.world_size, layout.data) == (world_size, data)


@pytest.mark.parametrize(
    ("world_size", "sizes", "words"),
    [
        (4, {"data": 2, "tensor": 3}, ["data 2 x tensor 3 = 6", "4"]),
        (4, {"tensor": 8}, ["tensor 8 = 8", "4"]),
        (6, {"replicate": 2, "tensor": 2}, ["replicate 2", "tensor 2", "6"]),
        (
            8,
            {"data": 2, "replicate": 2, "pipeline": 4, "context": 3},
            ["pipeline 4 x replicate 2 x data 2 x context 3"],
        ),
        (2, {"tensor": 0}, ["tensor", "0", "at least 1"]),
        (2, {"replicate": -1}, ["replicate", "-1", "at least 1"]),
        (2, {"data": 0}, ["data", "0", "at least 1"]),
        (2, {"tensor": 1.5}, ["tensor", "1.5", "whole number"]),
        (4, {"data": "all"}, ["data", "all", "auto"]),
        (4, {"expert": 3}, ["expert 3", "data 4 x context 1 = 4", "divisor"]),
        (4, {"tensor": 4, "expert": 2}, ["expert 2", "data 1 x context 1 = 1"]),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(world_size, sizes, words):
    with pytest.raises(UserError) as error:
        Layout.resolve(world_size, **sizes)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "axes", "words"),
    [
        ({}, {"tensor": 3}, ["n_head 4", "3", "set tensor"]),
        ({"n_kv_head": 2}, {"tensor": 4}, ["n_kv_head 2", "4", "set tensor"]),
        ({"intermediate_size": 50}, {"tensor": 4}, ["intermediate_size 50", "4", "set tensor"]),
        ({}, {"data": 2, "expert": 2}, ["expert", "2", "no mixture", "set expert to 1"]),
        ({"moe": MoEConfig(num_experts=6)}, {"data": 4, "expert": 4}, ["num_experts 6", "expert 4", "divisor"]),
    ],
)
def test_models_that_cannot_be_divided(changes, axes, words):
    with pytest.raises(UserError) as error:
        check_model(GPTConfig(**SMALL | changes), Layout(**axes))
    assert all(word in str(error.value) for word in words), error.value


def check_groups(mesh, layout):
    assert mesh.mesh_dim_names == AXES
    sizes = {axis: getattr(layout, axis) for axis in AXES}
    # The coordinates of a rank, by hand: a number whose last digit is the tensor axis.
    digits = []
    for rank in range(layout.world_size):
        coordinate = {}
        for axis in reversed(AXES):
            rank, coordinate[axis] = divmod(rank, sizes[axis])
        digits.append(coordinate)
    here = digits[dist.get_rank()]
    for group, axes in (*((axis, (axis,)) for axis in AXES), *GROUPS.items()):
        fixed = set(AXES) - set(axes)
        same = [r for r, other in enumerate(digits) if all(other[axis] == here[axis] for axis in fixed)]
        assert dist.get_process_group_ranks(mesh.get_group(group)) == same, group
    expected = ("replicate", "shard") if layout.replicate > 1 else ("shard",)
    assert fsdp_mesh(mesh).mesh_dim_names == expected
    assert fsdp_mesh(mesh).get_group("shard") is mesh.get_group("shard")


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [Layout(replicate=2, data=2), Layout(data=2, context=2, tensor=2), Layout(pipeline=2, tensor=2)]
)
def test_groups_of_the_mesh(layout):
    spawn(check_groups, layout, layout)


@pytest.mark.parametrize(
    ("layout", "per_node", "words"),
    [
        (Layout(data=4), 8, ["4 processes = data 4;", "4 load different", "5.00 M of 20.00 M", "4 FSDP shards"]),
        (
            Layout(replicate=2, data=4, tensor=2),
            8,
            [
                "replicate 2 x data 4 x tensor 2;",
                "8 load different",
                "2 copies",
                "data, tensor within",
                "replicate across",
            ],
        ),
        (Layout(data=4, tensor=16), 8, ["no axis within a node, data, tensor across"]),
        (Layout(data=2, context=4, expert=8, pipeline=2), 16, ["experts over 8 of data x context", "2 stages"]),
    ],
)
def test_who_holds_what(layout, per_node, words):
    text = layout.describe(20_000_000, (5_000_000, 5_000_000), per_node)
    assert all(word in text for word in words), text
    assert len(text.splitlines()) == (3 if layout.world_size > per_node else 2)
