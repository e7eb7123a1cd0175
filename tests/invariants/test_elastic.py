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
