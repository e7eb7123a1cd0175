"""A NaN is caught at its step: the run stops with the batch on disk, or the step is left out and nothing moves."""

import math

import pytest
import torch
from tiny_run import ListLogger, TinyLoader, TinyModule

from lit_gpt.callbacks import NonFiniteGuard, RunCheckpoint, nonfinite_guard
from lit_gpt.checkpoints.resolve import find_last_complete
from lit_gpt.errors import UserError
from lit_gpt.parallel.context import cut_rows


class SpoilsGradient(TinyModule):
    """The loss is finite, a gradient is not."""

    def on_after_backward(self):
        if self.trainer.global_step + 1 == self.spoil_gradient_at:
            self.model.wte.weight.grad[0, 0] = math.inf


def spoiled(at, gradient=False):
    module = SpoilsGradient()
    module.spoil_gradient_at = at if gradient else None
    module.spoil_at = None if gradient else at
    return module


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_the_run_stops_before_the_optimizer_moves(make_trainer, tmp_path, gradient):
    module = spoiled(4, gradient)
    trainer = make_trainer(NonFiniteGuard(), RunCheckpoint(every_n_steps=2))
    with pytest.raises(UserError) as caught:
        trainer.fit(module)
    run = tmp_path / "run"
    path = run / "nonfinite-step-00000004.pt"
    message = str(caught.value)
    assert "optimizer step 4" in message
    assert str(path) in message
    assert f"the last good checkpoint is {find_last_complete(run)[0]}" in message
    assert find_last_complete(run)[0].name == "step-00000002.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 4
    assert saved["batch"][0]["input_ids"].equal(TinyLoader().batch(3)[0]["input_ids"])
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_the_batch_of_divided_rows_holds_the_whole_ones(make_trainer, tmp_path):
    class Divided(TinyModule):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [cut_rows(micro_batch, 0, 2) for micro_batch in batch]

        def training_step(self, batch, batch_idx):
            return next(iter(self.parameters())).sum() * math.nan

    module = Divided()
    with pytest.raises(UserError, match="optimizer step 1"):
        make_trainer(NonFiniteGuard()).fit(module)
    saved = torch.load(tmp_path / "run" / "nonfinite-step-00000001.pt", weights_only=True)
    whole = TinyLoader().batch(0)[0]["input_ids"]
    assert saved["batch"][0]["sequence"]["input_ids"][:, : whole.shape[1]].equal(whole)


def test_without_a_checkpoint_it_says_so(make_trainer):
    with pytest.raises(UserError, match="there is no checkpoint yet"):
        make_trainer(NonFiniteGuard()).fit(spoiled(1))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_a_skipped_step_moves_nothing(make_trainer, tmp_path, gradient, fused):
    snapshots = {}

    class Watched(SpoilsGradient):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.5, fused=fused)

        def on_train_batch_end(self, *_):
            state = self.trainer.optimizers[0].state.values()
            everything = [*self.parameters(), *(value for item in state for value in item.values())]
            snapshots[self.trainer.global_step] = [value.detach().clone() for value in everything]

    module = Watched()
    module.spoil_gradient_at, module.spoil_at = (4, None) if gradient else (None, 4)
    guard, logger = NonFiniteGuard("skip"), ListLogger()
    with pytest.warns(UserWarning, match=r"not finite at optimizer step 4 .*; the step is skipped"):
        make_trainer(guard, logger=logger, max_steps=6, gradient_clip_val=1.0).fit(module)
    assert guard.num_skipped == 1
    assert guard.state_dict() == {"num_skipped": 1}
    assert logger.of("train/skipped_steps") == {4: 1.0}
    assert all(a.equal(b) for a, b in zip(snapshots[3], snapshots[4], strict=True))
    assert not all(a.equal(b) for a, b in zip(snapshots[4], snapshots[5], strict=True))
    assert all(value.isfinite().all() for value in snapshots[6])
    assert (tmp_path / "run" / "nonfinite-step-00000004.pt").exists()


def test_too_many_skips_in_a_row_end_the_run(make_trainer):
    class Hopeless(TinyModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("inf")

    with pytest.warns(UserWarning), pytest.raises(UserError, match="3 steps in a row were not finite"):
        make_trainer(NonFiniteGuard("skip", max_skips_in_a_row=3)).fit(Hopeless())


def test_an_unknown_action():
    with pytest.raises(UserError, match="action of NonFiniteGuard"):
        NonFiniteGuard("ignore")


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """Verdicts are read late, as where reading makes the host wait; the numbers themselves are on the CPU."""

    class OnTheWay(nonfinite_guard._PendingCheck):
        @property
        def on_host(self):
            return False

    monkeypatch.setattr(nonfinite_guard, "_PendingCheck", OnTheWay)


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_read_late_a_stop_still_names_the_step_and_its_batch(make_trainer, tmp_path):
    module = spoiled(4)
    with pytest.raises(UserError, match="optimizer step 4"):
        make_trainer(NonFiniteGuard(), RunCheckpoint(every_n_steps=100)).fit(module)
    assert len(module.losses) == 4 + nonfinite_guard.LAG
    saved = torch.load(tmp_path / "run" / "nonfinite-step-00000004.pt", weights_only=True)
    assert saved["batch"][0]["input_ids"].equal(TinyLoader().batch(3)[0]["input_ids"])


@pytest.mark.usefixtures("as_on_an_accelerator")
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}])
def test_read_late_no_ruined_checkpoint_is_written(make_trainer, tmp_path, options):
    module = spoiled(3)
    with pytest.raises(UserError, match="optimizer step 3"):
        make_trainer(NonFiniteGuard(), RunCheckpoint(every_n_steps=2), **options).fit(module)
    path, damaged = find_last_complete(tmp_path / "run")
    assert (path.name, damaged) == ("step-00000002.ckpt", [])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")] == ["step-00000002.ckpt"]


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_read_late_the_end_of_the_run_is_read_too(make_trainer):
    with pytest.raises(UserError, match="optimizer step 12"):
        make_trainer(NonFiniteGuard(), max_steps=12).fit(spoiled(12))


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_read_late_a_fused_optimizer_skips_by_itself(make_trainer):
    """`found_inf` is torch's own way (as under a GradScaler) to make a fused step a step that does nothing."""
    module = spoiled(3)
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters(), lr=0.05, fused=True)
    guard = NonFiniteGuard("skip")
    with pytest.warns(UserWarning, match="optimizer step 3"):
        make_trainer(guard).fit(module)
    assert guard.num_skipped == 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    steps = {int(state["step"]) for state in module.trainer.optimizers[0].state.values()}
    assert steps == {11}
