"""The number of processes changes neither which samples a step sees nor their order."""

import pytest

DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]


@pytest.mark.slow
def test_one_two_one_processes_consume_the_same_samples(runs):
    plain = ["--model.init_args.overrides.dropout", "0.0"]
    runs.run("one", *plain, root="one")
    runs.run("a", *plain, "--trainer.max_steps", "17", root="two")
    runs.run("b", *plain, *DDP, "--trainer.max_steps", "43", "--ckpt_path", "last", root="two")
    runs.run("c", *plain, "--ckpt_path", "last", root="two")
    expected = runs.steps("one")
    for step in range(1, 61):
        if step <= 17:
            samples, tokens = runs.steps("a")[step]["samples"], runs.steps("a")[step]["tokens"]
        elif step <= 43:
            ranks = [runs.steps("b", rank)[step] for rank in (0, 1)]
            samples, tokens = (ranks[0][key] + ranks[1][key] for key in ("samples", "tokens"))
        else:
            samples, tokens = runs.steps("c")[step]["samples"], runs.steps("c")[step]["tokens"]
        assert samples == expected[step]["samples"]
        assert tokens == expected[step]["tokens"]
    assert sorted(runs.steps("c")) == list(range(44, 61))


@pytest.mark.slow
def test_torchrun_starts_killed_processes_again_and_the_run_goes_on(runs):
    plain = ["--model.init_args.overrides.dropout", "0.0"]
    runs.run("one", *plain, "--trainer.max_steps", "14", root="one")
    strategy = ["--trainer.strategy", "ParallelStrategy", "--trainer.strategy.init_args.async_checkpoint", "true"]
    dies = ["--trainer.callbacks+=recorder.Dies", "--trainer.callbacks.step", "6"]
    for start, count, arguments in (
        ("two", 2, [*dies, "--trainer.max_steps", "10"]),  # its second process is killed after step 6
        ("then one", 1, ["--trainer.max_steps", "14", "--ckpt_path", "last"]),
    ):
        command = runs.command(start, *plain, *strategy, *arguments, root="elastic")
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=1", f"--nproc-per-node={count}"]
        done = runs.process([command[0], *torchrun, *command[1:]])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    expected = runs.steps("one")
    for step in range(1, 15):
        starts = [("two", 0), ("two", 1)] if step <= 10 else [("then one", 0)]
        lines = [runs.steps(start, rank)[step] for start, rank in starts]
        assert [sample for line in lines for sample in line["samples"]] == expected[step]["samples"]
        assert sum(line["loss_sum"] for line in lines) == pytest.approx(expected[step]["loss_sum"], rel=1e-4)
    # The step after the checkpoint was trained twice, before and after the restart.
    assert [line["step"] for line in runs.lines("two") if "samples" in line].count(5) == 2
