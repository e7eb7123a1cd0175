"""The plugin under a real Trainer: what it writes is whole, what it loads is data, what is damaged is refused."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lit_gpt.checkpoints.provenance import verify
from lit_gpt.errors import UserError
from lit_gpt.plugins import AtomicCheckpointIO


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 8), batch_size=2)  # the same at each step


def trainer(max_steps=3):
    return Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture
def saved(tmp_path):
    module, first = Line(), trainer()
    first.fit(module)
    path = tmp_path / "checkpoints" / "step-00000003.ckpt"
    first.save_checkpoint(path)
    return module, path


def test_what_is_written(saved):
    module, path = saved
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "model.safetensors", "state.pt"]
    verify(path)
    state = torch.load(path / "state.pt", weights_only=True)
    assert state["global_step"] == 3
    assert "state_dict" not in state


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_it_loads_as_data_whatever_is_asked(saved, weights_only):
    module, path = saved
    read = AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert all(read["state_dict"][name].equal(value) for name, value in module.state_dict().items())


def test_a_trainer_goes_on_from_it(saved):
    module, path = saved
    whole, part, second = Line(), Line(), trainer(max_steps=4)
    trainer(max_steps=4).fit(whole)
    second.fit(part, ckpt_path=str(path))
    assert second.global_step == 4
    assert all(a.equal(b) for a, b in zip(part.parameters(), whole.parameters(), strict=True))


def test_a_damaged_one_is_refused_by_name(saved):
    module, path = saved
    content = bytearray((path / "state.pt").read_bytes())
    content[-100] ^= 1
    (path / "state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"step-00000003\.ckpt/state\.pt is damaged"):
        trainer(max_steps=4).fit(Line(), ckpt_path=str(path))


def test_removing(saved):
    module, path = saved
    AtomicCheckpointIO().remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []
    AtomicCheckpointIO().remove_checkpoint(path)


def test_files_of_lightning_load_if_they_are_data(tmp_path):
    lightnings = {"state_dict": {"w": torch.ones(2)}, "pytorch-lightning_version": "2.6.0"}
    torch.save(lightnings, tmp_path / "data.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "data.ckpt")["state_dict"]["w"].equal(torch.ones(2))
    torch.save({"model": Line}, tmp_path / "code.ckpt")
    with pytest.raises(UserError, match="code.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "code.ckpt", weights_only=False)
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="foreign.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "foreign.ckpt")


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "nothing")
    with pytest.raises(UserError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x", storage_options={})
