"""A run that is killed and resumed is the run that never was: every loss and every weight, bit for bit."""

import random
import signal

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def whole(shared_runs):
    """60 steps without interruption: four micro-batches a step, dropout, validations, the end of an epoch."""
    shared_runs.run("whole", root="whole")
    assert sorted(shared_runs.steps("whole")) == list(range(1, 61))
    return shared_runs


def assert_same(runs, start, root):
    steps, reference = runs.steps(start), runs.steps("whole")
    assert steps, f"{start} recorded nothing"
    for step, line in steps.items():
        assert line == reference[step], f"{start} parts from the whole run at step {step}"
    for step, loss in runs.validations(start).items():
        assert loss == runs.validations("whole")[step], f"{start}: validation at step {step}"


def assert_same_weights(runs, root):
    one, other = runs.checkpoints("whole")[-1], runs.checkpoints(root)[-1]
    assert one.name == other.name == "step-00000060.ckpt"
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def kill_until_done(runs, root, seed, workers, kills, *arguments):
    """Start, kill at a random step, resume; after so many kills let it finish."""
    generator = random.Random(seed)
    more = ["--data.init_args.num_workers", str(workers), *arguments]
    for kill in range(kills):
        resume = ["--ckpt_path", "last"] if runs.checkpoints(root) else []
        start = f"{root}-{kill}"
        runs.interrupt(start, *more, *resume, after_lines=generator.randint(2, 45 // kills), root=root)
        assert_same(runs, start, root)
    resume = ["--ckpt_path", "last"] if runs.checkpoints(root) else []
    runs.run(f"{root}-end", *more, *resume, root=root)
    assert_same(runs, f"{root}-end", root)
    assert max(runs.steps(f"{root}-end")) == 60
    assert_same_weights(runs, root)


def test_killed_once(whole):
    kill_until_done(whole, "killed", seed=1, workers=0, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills", "seed"), [(0, 5, 2), (2, 3, 3), (2, 1, 4)])
def test_killed_again_and_again(whole, workers, kills, seed):
    kill_until_done(whole, f"killed{seed}", seed, workers, kills)


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_polite_signal_saves_and_leaves(whole, how):
    root = f"stopped{how}"
    done = whole.interrupt(root, after_lines=11, how=how, root=root)
    assert done.returncode == 128 + how
    assert "Traceback" not in done.stdout
    last = whole.checkpoints(root)[-1]
    assert last.name == f"step-{max(whole.steps(root)):08d}.ckpt", "it saved the step it had reached"
    assert "--ckpt_path last" in done.stdout
    whole.run(f"{root}-end", "--ckpt_path", "last", root=root)
    assert min(whole.steps(f"{root}-end")) == max(whole.steps(root)) + 1, "no step twice"
    assert_same(whole, f"{root}-end", root)
    assert_same_weights(whole, root)


@pytest.mark.slow
def test_going_on_past_the_end(whole):
    """A run of 40 steps, resumed with max_steps 60, under a constant schedule."""
    constant = ["--model.init_args.schedule", "Constant"]
    whole.run("constant", *constant, root="constant")
    whole.run("short", *constant, "--trainer.max_steps", "40", root="short")
    whole.run("short-end", *constant, "--ckpt_path", "last", root="short")
    together = whole.steps("short") | whole.steps("short-end")
    assert together == whole.steps("constant")


def test_a_damaged_checkpoint_is_named_and_the_last_good_one_used(whole):
    root = "damaged"
    whole.run(root, "--trainer.max_steps", "12", root=root)
    *_, good, newest = whole.checkpoints(root)
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused = whole.run(f"{root}-refused", "--ckpt_path", str(newest), expect=2, root=root)
    assert "model.safetensors" in refused.stderr
    done = whole.run(f"{root}-end", "--ckpt_path", "last", "--trainer.max_steps", "16", root=root)
    assert newest.name in done.stdout + done.stderr
    assert min(whole.steps(f"{root}-end")) == int(good.name[5:13]) + 1
