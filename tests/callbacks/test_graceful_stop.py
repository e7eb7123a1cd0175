"""SIGTERM and Ctrl-C end a run after its step, with a checkpoint from which it goes on exactly."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from tiny_run import TinyModule

from lit_gpt.callbacks import ExponentialMovingAverage, GracefulStop, RunCheckpoint
from lit_gpt.checkpoints.resolve import find_last_complete
from lit_gpt.checkpoints.step import read_checkpoint

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class SignalAt(Callback):
    """Sends this process a signal in the middle of step `step`."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = handlers()
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 4}, {"min_steps": 10}, {"min_epochs": 2}])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_after_its_step_with_a_checkpoint(make_trainer, tmp_path, number, options):
    whole = TinyModule()
    make_trainer(run="whole", **options).fit(whole)
    before = handlers()
    module, stop = TinyModule(), GracefulStop()
    make_trainer(SignalAt(number, 7), stop, RunCheckpoint(every_n_steps=100, save_best=False), **options).fit(module)
    assert stop.stopped_by == number
    assert handlers() == before
    assert sorted(module.losses) == list(range(7))
    path, _ = find_last_complete(tmp_path / "run")
    assert path.name == "step-00000007.ckpt"
    assert module.validated_at == [step for step in whole.validated_at if step < 7]  # none on the way out

    rest = TinyModule()
    make_trainer(GracefulStop(), RunCheckpoint(save_best=False), **options).fit(rest, ckpt_path=str(path))
    assert rest.losses == {step: loss for step, loss in whole.losses.items() if step >= 7}
    assert rest.validated_at == [step for step in whole.validated_at if step > 7]
    assert all(a.equal(b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


def test_a_signal_during_validation_leaves_it_and_the_step_before_is_saved(make_trainer, tmp_path):
    class Validating(TinyModule):
        def validation_step(self, batch, batch_idx):
            if self.trainer.global_step == 4 and batch_idx == 0 and not self.trainer.ckpt_path:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().validation_step(batch, batch_idx)

    def callbacks():
        return ExponentialMovingAverage(decay=0.5), GracefulStop(), RunCheckpoint(every_n_steps=100)

    whole = TinyModule()
    make_trainer(*callbacks(), run="whole", val_check_interval=4).fit(whole)
    module, parts = Validating(), callbacks()
    with pytest.raises(SystemExit) as caught:
        make_trainer(*parts, val_check_interval=4).fit(module)
    assert caught.value.code == 128 + signal.SIGTERM
    assert parts[1].stopped_by == signal.SIGTERM
    assert module.validated_at == []  # no value of half a validation was logged
    path, _ = find_last_complete(tmp_path / "run")
    assert path.name == "step-00000004.ckpt"
    weights = read_checkpoint(path)["state_dict"]
    assert all(weights[name].equal(value) for name, value in module.state_dict().items())

    rest = Validating()
    make_trainer(*callbacks(), val_check_interval=4).fit(rest, ckpt_path=str(path))
    assert rest.losses == {step: loss for step, loss in whole.losses.items() if step >= 4}
    assert rest.validated_at == [8, 12]
    assert all(a.equal(b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


def test_a_run_without_signals_is_not_stopped(make_trainer, module):
    before, stop = handlers(), GracefulStop()
    make_trainer(stop).fit(module)
    assert stop.stopped_by is None
    assert len(module.losses) == 12
    assert handlers() == before


@pytest.fixture
def python_takes_ctrl_c():
    """As in a terminal; a shell starts what it puts into the background with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # given back by `handlers_as_before`


@pytest.mark.usefixtures("python_takes_ctrl_c")
def test_an_error_gives_the_signals_back(make_trainer):
    class Fails(TinyModule):
        def training_step(self, *_):
            raise ZeroDivisionError

    before = handlers()
    with pytest.raises(ZeroDivisionError):
        make_trainer(GracefulStop()).fit(Fails())
    make_trainer(GracefulStop(), max_steps=1).fit(TinyModule())
    assert handlers() == before
    with pytest.raises(ZeroDivisionError):
        make_trainer(GracefulStop()).fit(Fails())
    with pytest.raises(KeyboardInterrupt):  # Lightning puts our handler back after an error; it passes the signal on
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before[0]


SCRIPT = textwrap.dedent(
    """
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import torch
    from lightning.pytorch import Trainer
    from tiny_run import TinyModule
    from lit_gpt.callbacks import GracefulStop, RunCheckpoint
    from lit_gpt.plugins import AtomicCheckpointIO

    number, mode, run = signal.Signals(int(sys.argv[2])), sys.argv[3], sys.argv[4]
    devices = int(sys.argv[5]) if len(sys.argv) > 5 else 1

    class Slow(TinyModule):
        def training_step(self, *arguments):
            loss = super().training_step(*arguments)
            if self.trainer.global_step == 3:
                if mode == "twice":
                    os.kill(os.getpid(), number)
                    os.kill(os.getpid(), number)
                elif self.trainer.global_rank == devices - 1:
                    os.kill(os.getpid(), number)
            return loss

    stop = GracefulStop()
    trainer = Trainer(
        default_root_dir=run, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        max_steps=1000, logger=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        num_sanity_val_steps=0, use_distributed_sampler=False, plugins=[AtomicCheckpointIO()],
        callbacks=[stop, RunCheckpoint(every_n_steps=1000)],
    )
    trainer.fit(Slow())
    print(f"rank {trainer.global_rank} left at {trainer.global_step} by {stop.stopped_by}", flush=True)
    sys.exit(0 if stop.stopped_by is None else 128 + stop.stopped_by)
    """
)


def start(number, mode, run, *devices):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, here, str(int(number)), mode, str(run), *devices]
    if devices:  # Lightning starts the other processes by running the script's file again
        script = run.parent / "script.py"
        script.write_text(SCRIPT)
        command[3:5] = [str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(tmp_path, number):
    done = start(number, "twice", tmp_path / "run")
    assert done.returncode == -number
    assert "Traceback" not in done.stderr
    assert f"{number.name}: finishing the step" in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("number", SIGNALS)
def test_any_process_may_get_the_signal_and_all_stop_at_one_step(tmp_path, number):
    done = start(number, "once", tmp_path / "run", "2")
    assert done.returncode == 128 + number, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert len(lines) == 2, done.stdout
    step = int(lines[0].split()[4])
    assert lines == [f"rank {rank} left at {step} by {int(number)}" for rank in (0, 1)]
    assert 4 <= step <= 6
    assert find_last_complete(tmp_path / "run")[0].name == f"step-{step:08d}.ckpt"
    assert "Traceback" not in done.stderr
