"""Shards are data: they come back whole on one process, and nothing in them can choose code to run."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lit_gpt.checkpoints.step import by_index, by_name, join_optimizers, load_into, read_shards, saved_tensors
from lit_gpt.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is.*")


@pytest.fixture
def shards(tmp_path):
    state = {
        "state_dict": {"model.w": torch.arange(6.0).view(2, 3), "model.b": torch.ones(3, dtype=torch.bfloat16)},
        "optimizer_0": {"model.w": {"exp_avg": torch.full((2, 3), 2.0), "step": torch.tensor(7.0)}},
        "ema": {"model.w": torch.zeros(2, 3)},
    }
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "shards"), no_dist=True)
    return tmp_path / "shards", state


def test_shards_come_back_whole(shards):
    folder, state = shards
    read = read_shards(folder)
    for name, value in state["state_dict"].items():
        assert read["state_dict"][name].equal(value)
        assert read["state_dict"][name].dtype == value.dtype
    assert read["optimizer_0"]["model.w"]["step"] == 7
    assert set(read_shards(folder, "state_dict")) == {"state_dict"}
    assert read_shards(folder, "absent") == {}


def test_tensors_are_known_before_they_are_read(shards):
    found = saved_tensors(shards[0])
    assert found["optimizer_0", "model.w", "exp_avg"] == (torch.Size([2, 3]), torch.float32)
    assert len(found) == 5


def test_loading_in_place_refuses_another_shape(shards):
    with pytest.raises(UserError, match="does not fit the model"):
        load_into({"state_dict": {"model.w": torch.zeros(5, 3)}}, shards[0])
    with pytest.raises(UserError, match="does not fit the model"):
        load_into({"state_dict": {"model.unknown": torch.zeros(5, 3)}}, shards[0])


def test_optimizer_states_by_name_and_by_index_are_inverse():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    groups = [{"params": list(model.parameters())[1::2], "lr": 0.1}, {"params": list(model.parameters())[::2]}]
    optimizer = torch.optim.AdamW(groups)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    names = ["0.bias", "1.bias", "0.weight", "1.weight"]
    state = optimizer.state_dict()
    named = by_name(state, names)
    assert named["param_groups"][1]["params"] == ["0.weight", "1.weight"]
    assert named["state"]["1.bias"]["exp_avg"] is state["state"][1]["exp_avg"]
    assert by_index(named) == state


def test_plain_options_and_sharded_moments_are_joined():
    plain = {"state": {"w": {"count": 3}}, "param_groups": [{"params": ["b", "w"], "lr": 0.1}]}
    tensors = {"optimizer_0": {"w": {"exp_avg": 1}, "b": {"exp_avg": 2}}}
    (state,) = join_optimizers(tensors, [plain])
    assert state["param_groups"] == [{"params": [0, 1], "lr": 0.1}]
    assert state["state"] == {1: {"count": 3, "exp_avg": 1}, 0: {"exp_avg": 2}}
    assert tensors == {}


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/never-written", "w"))


@pytest.mark.parametrize("payload", [Evil(), {"a": Evil()}, torch.nn.Linear, torch.load])
def test_metadata_that_names_code_is_refused(shards, payload):
    folder, state = shards
    (folder / ".metadata").write_bytes(pickle.dumps(payload))
    for read in (lambda: read_shards(folder), lambda: load_into({"state_dict": dict(state["state_dict"])}, folder)):
        with pytest.raises(UserError, match="metadata"):
            read()


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"garbage"])
def test_damaged_metadata_is_named(shards, content):
    (shards[0] / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match=r"\.metadata"):
        read_shards(shards[0])


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_values_that_are_no_tensors_are_not_loaded(tmp_path):
    state = {"state_dict": {"w": torch.zeros(2)}, "x": {"evil": Evil()}}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "shards"), no_dist=True)
    with pytest.raises(BaseException, match="tensor"):
        read_shards(tmp_path / "shards")
    assert read_shards(tmp_path / "shards", "state_dict")["state_dict"]["w"].equal(torch.zeros(2))
