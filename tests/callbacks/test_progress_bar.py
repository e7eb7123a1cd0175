"""A bar on a terminal, lines without control characters elsewhere, and almost no cost."""

import io
import sys
import time

import pytest
from tiny_run import TinyModule

from lit_gpt.callbacks import TokenProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Logs(TinyModule):
    def on_train_batch_end(self, *_):
        self.log("train/loss", 1.23456, logger=False, prog_bar=True)

    def on_validation_epoch_end(self):
        self.log_dict({"val/loss": 2.5, "val/bits_per_byte": 1.75})


@pytest.fixture
def stderr(monkeypatch):
    def use(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return use


def test_a_terminal_gets_one_bar_over_the_whole_run(make_trainer, stderr):
    stream = stderr(Terminal())
    make_trainer(TokenProgressBar(refresh_seconds=0.0), val_check_interval=5).fit(Logs())
    text = stream.getvalue()
    assert "12/12 [" in text
    assert "1/12 [" in text
    assert "loss 1.235" in text
    assert "val 2.500" in text
    assert "bits/byte 1.750" in text
    assert "tokens/s" in text
    assert "validating" in text


def test_no_terminal_gets_lines(make_trainer, stderr):
    stream = stderr(io.StringIO())
    make_trainer(TokenProgressBar(line_seconds=0.0), val_check_interval=6).fit(Logs())
    text = stream.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("step 7/12 (58%)")]
    assert [line for line in lines if line.startswith("step 6: validated in 0:00") and "val 2.500" in line]
    assert any("left" in line and "tokens/s" in line for line in lines)
    assert lines[-1].startswith("step 12/12 (100%)")


@pytest.mark.parametrize(("every", "told"), [(5, 0), (50, 1)])
def test_a_run_shorter_than_the_logging_interval_tells_its_length(make_trainer, stderr, every, told):
    stream = stderr(io.StringIO())
    make_trainer(TokenProgressBar(line_seconds=1000.0), log_every_n_steps=every).fit(Logs())
    assert stream.getvalue().count("12 optimizer steps in all") == told


def test_lines_are_rare(make_trainer, stderr):
    stream = stderr(io.StringIO())
    make_trainer(TokenProgressBar(line_seconds=1000.0)).fit(Logs())
    assert len([line for line in stream.getvalue().splitlines() if line.startswith("step")]) == 1  # the last


def test_a_resumed_run_goes_on_where_it_was(make_trainer, stderr, tmp_path):
    from lit_gpt.callbacks import RunCheckpoint

    make_trainer(RunCheckpoint(), max_steps=6).fit(Logs())
    path = tmp_path / "run" / "checkpoints" / "step-00000006.ckpt"
    stream = stderr(Terminal())
    make_trainer(TokenProgressBar(refresh_seconds=0.0)).fit(Logs(), ckpt_path=str(path))
    assert "7/12 [" in stream.getvalue()
    assert "| 1/12 [" not in stream.getvalue()


def test_epochs_are_one_run(make_trainer, stderr):
    stream = stderr(io.StringIO())
    make_trainer(TokenProgressBar(line_seconds=0.0), max_steps=-1, max_epochs=2).fit(Logs())
    assert "step 10/10 (100%)" in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_validate_test_and_predict(make_trainer, stderr, terminal):
    class Evaluates(TinyModule):
        test_dataloader = predict_dataloader = TinyModule.val_dataloader
        test_step = predict_step = TinyModule.validation_step

    stream = stderr(Terminal() if terminal else io.StringIO())
    trainer = make_trainer(TokenProgressBar(refresh_seconds=0, line_seconds=0), limit_val_batches=2)
    trainer.validate(Evaluates(), verbose=False)
    trainer.test(Evaluates(), verbose=False)
    trainer.predict(Evaluates())
    for what in ("validating", "testing", "predicting"):
        assert what in stream.getvalue()


def test_an_error_closes_the_bar(make_trainer, stderr):
    class Fails(TinyModule):
        def validation_step(self, *_):
            raise ZeroDivisionError

    stderr(Terminal())
    bar = TokenProgressBar(refresh_seconds=0.0)
    with pytest.raises(ZeroDivisionError):
        make_trainer(bar, val_check_interval=2).fit(Fails())
    assert bar._bar is None


def test_between_two_drawings_a_step_costs_almost_nothing(make_trainer, module, stderr):
    stderr(Terminal())
    bar = TokenProgressBar(refresh_seconds=1000.0)
    trainer = make_trainer(bar, max_steps=1)
    trainer.fit(module)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            bar.on_train_batch_end(trainer, module, None, None, 0)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 0.02e-3
