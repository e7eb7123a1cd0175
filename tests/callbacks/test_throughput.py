"""Numbers by hand for the clock, and every entry of the monitor."""

import time

import pytest
import torch
from lightning.pytorch import LightningDataModule
from tiny_run import CONFIG, ListLogger, TinyModule

from lit_gpt.callbacks import RunCheckpoint, ThroughputMonitor
from lit_gpt.callbacks.throughput import TrainingClock, clock_time, planned_steps
from lit_gpt.planning import hardware


def test_the_clock_by_hand():
    now = [0.0]
    clock = TrainingClock(lambda: now[0])
    clock.restart(10, 1000)
    now[0] = 4.0
    assert clock.lap(12, 3000) == (2.0, 500.0)
    now[0] = 5.0
    clock.pause()
    now[0] = 105.0
    clock.resume()
    now[0] = 107.0
    clock.skip(1.0)
    assert clock.lap(13, 4000) == (2.0, 500.0)
    assert str(clock.lap(13, 4000)) == "(nan, nan)"


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (125.4, "2:05"), (3725, "1:02:05"), (float("inf"), "?")])
def test_times_are_readable(seconds, text):
    assert clock_time(seconds) == text


def test_the_end_is_the_first_limit_that_is_reached(make_trainer, module):
    ends = []

    class Asks(TinyModule):
        max_tokens = None

        def on_train_batch_end(self, *_):
            ends.append(planned_steps(self.trainer, self))

    def end_of(max_tokens=None, **options):
        module = Asks()
        module.max_tokens = max_tokens
        ends.clear()
        make_trainer(**({"max_steps": -1} | options)).fit(module)
        return set(ends)

    assert end_of(max_steps=4) == {4}
    assert end_of(max_epochs=2) == {10}
    assert end_of(max_epochs=2, max_steps=7) == {7}
    assert end_of(max_tokens=16 * 6 - 1, max_steps=8) == {6}  # 16 tokens a step
    assert planned_steps(make_trainer(max_steps=-1, max_epochs=-1), module) is None


def test_entries_come_every_log_interval_and_are_consistent(make_trainer, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_peak_flops", lambda: 1e9)

    class Slow(TinyModule):
        def training_step(self, *arguments):
            time.sleep(0.002)
            return super().training_step(*arguments)

        def validation_step(self, *arguments):
            time.sleep(0.3)  # is not training
            return super().validation_step(*arguments)

    class Data(LightningDataModule):
        block_size = 4
        train_dataloader, val_dataloader = TinyModule.train_dataloader, TinyModule.val_dataloader

    logger, monitor = ListLogger(), ThroughputMonitor()
    make_trainer(monitor, logger=logger, log_every_n_steps=3, val_check_interval=2).fit(Slow(), datamodule=Data())
    speed, step_seconds = logger.of("throughput/tokens_per_second"), logger.of("throughput/step_seconds")
    assert list(speed) == [3, 6, 9, 12]
    assert logger.of("throughput/tokens_seen") == {3: 48, 6: 96, 9: 144, 12: 192}
    for step in speed:
        assert 0.002 < step_seconds[step] < 0.15
        assert speed[step] == pytest.approx(16 / step_seconds[step])
        mfu = logger.of("throughput/mfu")[step]
        assert mfu == pytest.approx(speed[step] * CONFIG.flops_per_token(4) / 1e9)
    left = logger.of("throughput/seconds_left")
    assert left[12] == 0 < left[3]
    assert left[9] > 0.3  # a validation is still to come
    assert 0.05 < logger.of("memory/rss_gb")[3] < 100
    assert monitor.latest["throughput/tokens_seen"] == 192


def test_an_unknown_device_has_no_mfu(make_trainer, module, monkeypatch):
    monkeypatch.setattr("lit_gpt.callbacks.throughput.peak_flops", lambda device: None)
    logger = ListLogger()
    make_trainer(ThroughputMonitor(), logger=logger).fit(module)
    assert logger.of("throughput/tokens_per_second")
    assert logger.of("throughput/mfu") == {}


def test_saving_is_not_training(make_trainer, module, monkeypatch):
    logger, checkpoint = ListLogger(), RunCheckpoint(every_n_steps=1)
    save = checkpoint.save

    def slow_save(*arguments):
        time.sleep(0.1)
        save(*arguments)
        checkpoint.seconds_saving += 0.1

    checkpoint.save = slow_save
    make_trainer(ThroughputMonitor(), checkpoint, logger=logger, log_every_n_steps=4).fit(module)
    assert max(logger.of("throughput/step_seconds").values()) < 0.08


def test_between_two_entries_a_step_costs_almost_nothing(make_trainer, module):
    monitor = ThroughputMonitor()
    trainer = make_trainer(monitor, max_steps=1, log_every_n_steps=50)
    trainer.fit(module)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            monitor.on_train_batch_end(trainer, module, None, None, 0)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 0.3e-3 / 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu(make_trainer, module):
    logger = ListLogger()
    make_trainer(ThroughputMonitor(), logger=logger, accelerator="gpu").fit(module)
    assert 0 < logger.of("memory/cuda_allocated_gb")[5] <= logger.of("memory/cuda_reserved_gb")[5]
