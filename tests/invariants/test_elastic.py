"""The number of processes changes neither which samples a step sees nor their order; torchrun starts lost ones again."""

import socket
import subprocess
import time

import pytest
from command_runs import kill_with_children

PLAIN = ["--model.init_args.overrides.dropout", "0.0"]
PARALLEL = ["--trainer.strategy", "ParallelStrategy", "--trainer.strategy.init_args.async_checkpoint", "true"]
DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]


@pytest.mark.slow
def test_one_two_one_processes_consume_the_same_samples(runs):
    runs.run("one", *PLAIN, root="one")
    runs.run("a", *PLAIN, "--trainer.max_steps", "17", root="two")
    runs.run("b", *PLAIN, *DDP, "--trainer.max_steps", "43", "--ckpt_path", "last", root="two")
    runs.run("c", *PLAIN, "--ckpt_path", "last", root="two")
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


def check_steps(runs, start, last_step):
    """Every step, also one that was trained twice, has the samples of one process in their order, and its loss."""
    attempts = {}
    for rank in range(4):
        for line in runs.lines(start, rank):
            if "samples" in line:
                attempts.setdefault((line["step"], line["world_size"]), {}).setdefault(rank, []).append(line)
    expected = runs.steps("one")
    for (step, world_size), by_rank in attempts.items():
        assert sorted(by_rank) == list(range(world_size)), (step, world_size)
        for lines in zip(*(by_rank[rank] for rank in range(world_size)), strict=True):
            assert [sample for line in lines for sample in line["samples"]] == expected[step]["samples"], step
            assert sum(line["loss_sum"] for line in lines) == pytest.approx(expected[step]["loss_sum"], rel=1e-4), step
    assert {step for step, _ in attempts} == set(range(1, last_step + 1))
    return attempts


def torchrun(command, *options):
    """The command under torchrun."""
    return [command[0], "-m", "torch.distributed.run", *options, *command[1:]]


@pytest.mark.slow
def test_torchrun_starts_killed_processes_again(runs):
    """On one machine without an option for it: its agent's store would send new processes to those that are gone."""
    runs.run("one", *PLAIN, "--trainer.max_steps", "10", root="one")
    dies = ["--trainer.callbacks+=recorder.Dies", "--trainer.callbacks.step=6", "--trainer.callbacks.ranks=[1,2]"]
    dies += [f"--trainer.callbacks.done={runs.folder / 'died'}", "--trainer.max_steps", "10"]
    command = runs.command("four", *PLAIN, "--trainer.strategy", "ddp", *dies, root="elastic")
    done = runs.process(torchrun(command, "--standalone", "--max-restarts=1", "--nproc-per-node=4"), 900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    attempts = check_steps(runs, "four", 10)
    # The steps after the checkpoint of step 4 were trained twice, before and after the restart.
    assert [len(attempts[step, 4][0]) for step in range(1, 11)] == [1, 1, 1, 1, 2, 2, 1, 1, 1, 1]


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_machines_and_again_with_more(runs):
    """Two agents of torchrun with two processes each: one is killed with its processes, and a new one comes later."""
    runs.run("one", *PLAIN, "--trainer.max_steps", "18", root="one")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    dies = ["--trainer.callbacks+=recorder.Dies", "--trainer.callbacks.step=6"]
    dies += [f"--trainer.callbacks.done={runs.folder / 'died'}"]
    waits = ["--trainer.callbacks+=recorder.WaitsForMore", "--trainer.callbacks.step=11"]
    waits += ["--trainer.callbacks.world_size=2", f"--trainer.callbacks.reached={runs.folder / 'reached'}"]
    arguments = [*PLAIN, *PARALLEL, *dies, *waits, "--trainer.max_steps", "18", "--ckpt_path", "auto"]
    command = runs.command("elastic", *arguments, root="elastic")
    environment = {**runs.environment, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    agents = []

    def start_agent(is_host, **variables):
        quick = f"is_host={is_host},last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
        options = ["--nnodes=1:2", "--nproc-per-node=2", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=job"]
        options += [f"--rdzv-endpoint=localhost:{port}", f"--rdzv-conf={quick}"]
        with open(runs.folder / f"agent-{len(agents)}.log", "w") as log:
            words = torchrun(command, *options)
            agents.append(subprocess.Popen(words, env=environment | variables, cwd=runs.folder, stdout=log, stderr=log))

    try:
        start_agent(1)
        start_agent(0, IS_LOST="1")
        while not (runs.folder / "reached").exists() and agents[0].poll() is None:
            time.sleep(0.1)
        start_agent(0)
        code = agents[0].wait(900)
    finally:
        kill_with_children(agents)
    assert code == 0, (runs.folder / "agent-0.log").read_text()[-5000:]
    attempts = check_steps(runs, "elastic", 18)
    few = {step for step, world_size in attempts if world_size == 2}
    many = {step for step, world_size in attempts if world_size == 4}
    # Resumed from the checkpoint of step 4; those that make room for more save where they are.
    assert few == set(range(5, max(few) + 1))
    assert many == {*range(1, 7), *range(max(few) + 1, 19)}
    assert all(len(by_rank[0]) == 1 for by_rank in attempts.values())
