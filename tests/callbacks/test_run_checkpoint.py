"""A run is saved at the right steps, keeps the right ones, and goes on from any of them as if nothing had happened."""

import errno
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tiny_run import TinyModule

from lit_gpt.callbacks import RunCheckpoint
from lit_gpt.callbacks.run_checkpoint import superfluous
from lit_gpt.checkpoints import step as step_files
from lit_gpt.checkpoints.provenance import verify
from lit_gpt.checkpoints.resolve import find_best, find_last_complete, resolve_model
from lit_gpt.checkpoints.step import checkpoint_name, read_checkpoint, step_of
from lit_gpt.errors import UserError
from lit_gpt.plugins import AtomicCheckpointIO


def saved_steps(run_dir):
    return sorted(step_of(path) for path in (run_dir / "checkpoints").glob("*.ckpt"))


class Killed(Exception):
    pass


class KillAt(Callback):
    """Ends the run after step `step`, before its checkpoint is saved."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


def final_state(module, trainer):
    optimizer = trainer.optimizers[0]
    moments = {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items()}
    return {**module.state_dict(), **moments, "lr": torch.tensor(optimizer.param_groups[0]["lr"])}


VALIDATIONS = {
    "no validation": {},
    "every 2 steps": {"val_check_interval": 2},
    "every 3 steps": {"val_check_interval": 3},
    "each epoch": {"limit_val_batches": 2},
    "each epoch, by epochs": {"limit_val_batches": 2, "max_steps": -1, "max_epochs": 3},
}


@pytest.mark.parametrize("options", VALIDATIONS.values(), ids=VALIDATIONS)
@pytest.mark.parametrize("every_n_steps", [1, 2, 5])
def test_killed_anywhere_and_resumed_is_the_run_that_was_never_killed(make_trainer, every_n_steps, options):
    whole, trainer = TinyModule(), make_trainer(run="whole", **options)
    trainer.fit(whole)
    expected = final_state(whole, trainer)

    parts, validated, path = [], [], None
    for kill_at in (7, 9, 100):
        checkpoint = RunCheckpoint(every_n_steps=every_n_steps)
        part, trainer = TinyModule(), make_trainer(KillAt(kill_at), checkpoint, run="parts", **options)
        try:
            trainer.fit(part, ckpt_path=path)
        except Killed:
            path = str(find_last_complete(Path(trainer.default_root_dir))[0])
        parts.append(part)
        validated += [step for step in part.validated_at if step not in validated]
    for part in parts:
        for step, loss in part.losses.items():
            assert loss == whole.losses[step], step
    assert set().union(*(part.losses for part in parts)) == set(whole.losses)
    assert len(whole.losses) >= 12
    assert validated == whole.validated_at
    result = final_state(part, trainer)
    assert result.keys() == expected.keys()
    assert all(result[name].equal(value) for name, value in expected.items())
    assert part.tokens_seen == whole.tokens_seen


def test_steps_that_are_saved(make_trainer, module, tmp_path):
    make_trainer(RunCheckpoint(every_n_steps=5, keep_last=10), max_steps=12).fit(module)
    assert saved_steps(tmp_path / "run") == [5, 10, 12]
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        verify(path)


def test_the_last_step_of_the_last_epoch_is_saved(make_trainer, module, tmp_path):
    make_trainer(RunCheckpoint(every_n_steps=100), max_steps=-1, max_epochs=2).fit(module)
    assert saved_steps(tmp_path / "run") == [10]


def test_better_validations_are_saved_and_the_best_stays(make_trainer, tmp_path):
    module = TinyModule(val_losses=[3.0, 1.0, 2.0, 1.5, float("nan"), 1.2])
    checkpoint = RunCheckpoint(every_n_steps=100, keep_last=1)
    trainer = make_trainer(checkpoint, val_check_interval=2)
    trainer.fit(module)
    run = tmp_path / "run"
    assert saved_steps(run) == [4, 12]
    record = json.loads((run / "checkpoints" / "best.json").read_text())
    assert record == {"checkpoint": "step-00000004.ckpt", "step": 4, "monitor": "val/loss", "value": 1.0}
    assert find_best(run).name == "step-00000004.ckpt"
    assert checkpoint.best_model_path == str(find_best(run))
    assert resolve_model(run).path == find_best(run)
    assert find_last_complete(run)[0].name == "step-00000012.ckpt"


def test_the_best_is_remembered_over_a_resume(make_trainer, tmp_path):
    first = TinyModule(val_losses=[1.0, 2.0, 3.0])
    make_trainer(RunCheckpoint(every_n_steps=2, keep_last=1), val_check_interval=2, max_steps=6).fit(first)
    run = tmp_path / "run"
    second = TinyModule(val_losses=[1.5, 0.5])
    callback = RunCheckpoint(every_n_steps=2, keep_last=1)
    make_trainer(callback, val_check_interval=2, max_steps=10).fit(second, ckpt_path=str(find_last_complete(run)[0]))
    assert second.validated_at == [8, 10]
    assert find_best(run).name == "step-00000010.ckpt"
    assert saved_steps(run) == [10]


def test_larger_can_be_better(make_trainer, tmp_path):
    module = TinyModule(val_losses=[1.0, 5.0, 2.0])
    make_trainer(RunCheckpoint(mode="max", keep_last=1), val_check_interval=2, max_steps=6).fit(module)
    assert find_best(tmp_path / "run").name == "step-00000004.ckpt"


def test_a_stop_that_another_callback_asks_for_is_saved(make_trainer, tmp_path):
    module = TinyModule(val_losses=[1.0, 2.0, 3.0])
    stop = EarlyStopping(monitor="val/loss", patience=1, mode="min")
    make_trainer(stop, RunCheckpoint(every_n_steps=100, save_best=False), val_check_interval=2).fit(module)
    assert saved_steps(tmp_path / "run") == [4]


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 50}])
def test_a_stop_by_the_module_itself_is_saved_exactly(make_trainer, tmp_path, options):
    """The module's hook comes after every callback's, as when `max_tokens` is reached."""

    class Stops(TinyModule):
        def on_train_batch_end(self, *_):
            if self.trainer.global_step == 7 and not self.trainer.ckpt_path:
                self.trainer.should_stop = True

    whole = TinyModule()
    make_trainer(run="whole").fit(whole)
    run = tmp_path / "run"
    make_trainer(RunCheckpoint(every_n_steps=100), **options).fit(Stops())
    assert saved_steps(run) == [7]
    rest = Stops()
    make_trainer(RunCheckpoint(every_n_steps=100), **options).fit(rest, ckpt_path=str(find_last_complete(run)[0]))
    assert rest.losses == {step: loss for step, loss in whole.losses.items() if step >= 7}
    assert saved_steps(run) == [7, 12]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_the_others(make_trainer, tmp_path, monkeypatch):
    calls = []

    def full(*_):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_state(*_)

    save_state = step_files.save_state
    monkeypatch.setattr(step_files, "save_state", full)
    with pytest.raises(UserError, match=r"no space to write .*step-00000006\.ckpt"):
        make_trainer(RunCheckpoint(every_n_steps=2)).fit(TinyModule())
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000002.ckpt", "step-00000004.ckpt"]
    assert find_last_complete(run)[0].name == "step-00000004.ckpt"


def test_a_damaged_newest_is_passed_over_and_written_again(make_trainer, tmp_path):
    run = tmp_path / "run"
    make_trainer(RunCheckpoint(every_n_steps=2), max_steps=6).fit(TinyModule())
    (run / "checkpoints" / "step-00000006.ckpt" / "state.pt").write_bytes(b"cut")
    path, damaged = find_last_complete(run)
    assert path.name == "step-00000004.ckpt"
    assert "step-00000006.ckpt/state.pt has 3 bytes" in damaged[0]
    make_trainer(RunCheckpoint(every_n_steps=2), max_steps=8).fit(TinyModule(), ckpt_path=str(path))
    assert saved_steps(run) == [6, 8]
    assert find_last_complete(run) == (run / "checkpoints" / "step-00000008.ckpt", [])


def test_nothing_is_saved_in_a_fast_dev_run(make_trainer, module, tmp_path):
    make_trainer(RunCheckpoint(every_n_steps=1), fast_dev_run=True).fit(module)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_it_says_where_the_checkpoint_is_and_what_to_type(make_trainer, module, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    make_trainer(RunCheckpoint(prompt="def "), max_steps=2).fit(module)
    printed = capsys.readouterr().out
    assert f"checkpoint  {run}/checkpoints/step-00000002.ckpt" in printed
    assert f"python -m lit_gpt generate --model {run} --prompt 'def '" in printed
    assert f"python -m lit_gpt fit --config {run}/config.yaml --ckpt_path last" in printed


def test_a_metric_that_is_not_logged_is_an_error(make_trainer, module):
    trainer = make_trainer(RunCheckpoint(monitor="val/acc"), val_check_interval=2)
    with pytest.raises(UserError, match="monitors 'val/acc', but validation logged val/loss"):
        trainer.fit(module)


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"keep_last": 0}, {"mode": "best"}])
def test_arguments_out_of_bounds(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        RunCheckpoint(**wrong)


@pytest.mark.parametrize(
    ("newest_first", "damaged", "keep_last", "best", "gone"),
    [
        ("54321", "", 2, None, "321"),
        ("54321", "", 2, "2", "31"),
        ("54321", "5", 2, None, "21"),
        ("54321", "54321", 1, None, ""),
        ("5", "", 1, None, ""),
        ("54321", "5432", 1, None, ""),
        ("54321", "", 1, "5", "4321"),
    ],
)
def test_retention_by_hand(newest_first, damaged, keep_last, best, gone):
    paths = [Path(name) for name in newest_first]
    found = superfluous(paths, lambda path: path.name not in damaged, keep_last, best)
    assert [path.name for path in found] == list(gone)


# ---- in the background ---------------------------------------------------------------------------------------------


def background(make_trainer, *callbacks, **options):
    return make_trainer(*callbacks, plugins=[AtomicCheckpointIO(async_checkpoint=True)], **options)


def test_in_the_background_the_same_is_saved(make_trainer, tmp_path):
    make_trainer(RunCheckpoint(every_n_steps=2, keep_last=9), run="blocking").fit(TinyModule())
    background(make_trainer, RunCheckpoint(every_n_steps=2, keep_last=9)).fit(TinyModule())
    assert saved_steps(tmp_path / "run") == saved_steps(tmp_path / "blocking") == [2, 4, 6, 8, 10, 12]
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        verify(path)
        other = tmp_path / "blocking" / "checkpoints" / path.name
        assert (path / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        moments = [read_checkpoint(folder)["optimizer_states"][0]["state"] for folder in (path, other)]
        assert all(v.equal(moments[1][i][k]) for i, state in moments[0].items() for k, v in state.items())


def test_training_goes_on_while_a_checkpoint_is_written(make_trainer, tmp_path, monkeypatch):
    release, save_state, seen = threading.Event(), step_files.save_state, {}

    def slow(*arguments):
        assert release.wait(60)
        save_state(*arguments)

    class Looks(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:  # step 2 is in flight
                folder = tmp_path / "run" / "checkpoints"
                seen["files"] = [path.name for path in folder.iterdir() if not path.name.startswith(".tmp-")]
                seen["last"] = checkpoint.last_model_path
                release.set()

    monkeypatch.setattr(step_files, "save_state", slow)
    checkpoint = RunCheckpoint(every_n_steps=2, keep_last=1)
    module = TinyModule(val_losses=[1.0, 3.0, 2.0])
    background(make_trainer, checkpoint, Looks(), val_check_interval=2, max_steps=6).fit(module)
    assert seen == {"files": [], "last": ""}, "nothing names a checkpoint that is not published"
    assert saved_steps(tmp_path / "run") == [2, 6]
    assert find_best(tmp_path / "run").name == "step-00000002.ckpt"
    assert checkpoint.last_model_path.endswith("step-00000006.ckpt")


@pytest.mark.parametrize("fails_at", [1, 3, 6])
def test_an_error_in_the_background_ends_the_run_and_keeps_the_others(make_trainer, tmp_path, monkeypatch, fails_at):
    calls, save_state = [], step_files.save_state

    def full(*arguments):
        calls.append(1)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_state(*arguments)

    monkeypatch.setattr(step_files, "save_state", full)
    trainer = background(make_trainer, RunCheckpoint(every_n_steps=2, keep_last=9))
    with pytest.raises(UserError, match=rf"no space to write .*{checkpoint_name(2 * fails_at)}"):
        trainer.fit(TinyModule())
    # The next save raises it, or the end of the run.
    assert trainer.global_step == min(2 * fails_at + 2, 12)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [checkpoint_name(number) for number in range(2, 2 * fails_at, 2)]


def test_an_error_of_the_run_waits_for_the_checkpoint_in_flight(make_trainer, tmp_path):
    with pytest.raises(Killed):
        background(make_trainer, RunCheckpoint(every_n_steps=2), KillAt(3)).fit(TinyModule())
    assert saved_steps(tmp_path / "run") == [2]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002.ckpt"]


def test_what_no_checkpoint_can_hold_is_named_at_once(make_trainer, tmp_path):
    class Odd(Callback):
        def state_dict(self):
            return {"object": object()}

    trainer = background(make_trainer, RunCheckpoint(every_n_steps=2), Odd())
    with pytest.raises(UserError, match=r"checkpoint\['callbacks'\].*object"):
        trainer.fit(TinyModule())
    assert trainer.global_step == 2


def test_lightnings_own_checkpoint_callback_never_deletes_the_last_one_that_exists(make_trainer, tmp_path, monkeypatch):
    publish, seen = step_files.atomic_folder, []

    @contextmanager
    def looks(folder, seal):
        seen.append(sorted(path.name for path in tmp_path.glob("*.ckpt")))
        with publish(folder, seal) as temporary:
            yield temporary

    monkeypatch.setattr(step_files, "atomic_folder", looks)
    callback = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_on_train_epoch_end=False)
    background(make_trainer, callback, enable_checkpointing=True, max_steps=6).fit(TinyModule())
    assert seen == [[], ["step=2.ckpt"], ["step=4.ckpt"]]
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=6.ckpt"]
