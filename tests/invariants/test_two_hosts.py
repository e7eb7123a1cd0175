"""Two network namespaces as two hosts: a run across them survives that the link between them goes down."""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from command_runs import kill_with_children
from test_elastic import PLAIN, check_steps, torchrun

PORT = 29500
CONF = "last_call_timeout=2,keep_alive_interval=2,keep_alive_max_attempt=5,read_timeout=600"
"""An agent that gave up earlier would close the rendezvous for the other one, too."""


def ip(words):
    """Run `ip`, and raise what it says."""
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {words}: {done.stderr.strip()}")


@pytest.fixture
def hosts():
    """Names of two namespaces; in each there is one end of a cable, named `cable`, with 10.213.7.1 and .2."""
    names = [f"host{n}-{os.getpid()}" for n in (1, 2)]
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the program `ip` (iproute2)")
    try:
        try:
            for name in names:
                ip(f"netns add {name}")
            ip(f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
        except OSError as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        for number, name in enumerate(names, 1):
            ip(f"-n {name} address add 10.213.7.{number}/24 dev cable")
            ip(f"-n {name} link set lo up")
            ip(f"-n {name} link set cable up")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                ip(f"netns delete {name}")


@pytest.mark.slow
def test_a_run_across_two_hosts_survives_a_dead_link(runs, hosts):
    runs.run("one", *PLAIN, "--trainer.max_steps", "10", root="one")
    cuts = ["--trainer.callbacks+=recorder.CutsCable", "--trainer.callbacks.step=6"]
    cuts += [f"--trainer.callbacks.done={runs.folder / 'cut'}"]
    guard = ["--trainer.callbacks+=HangGuard", "--trainer.callbacks.minutes=0.5"]
    arguments = [*PLAIN, "--trainer.strategy", "ddp", *cuts, *guard, "--trainer.max_steps", "10"]
    command = runs.command("hosts", *arguments, "--ckpt_path", "auto", root="elastic")
    environment = {**runs.environment, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "cable"}
    logs = [Path(runs.folder, f"{name}.log") for name in hosts]

    def start_agent(number):
        options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=5", "--rdzv-backend=c10d", "--rdzv-id=job"]
        options += [f"--rdzv-endpoint=10.213.7.1:{PORT}", f"--local-addr=10.213.7.{number + 1}"]
        options += [f"--rdzv-conf=is_host={int(number == 0)},{CONF}"]
        # A host name of its own, too.
        words = ["ip", "netns", "exec", hosts[number], "unshare", "--uts", "sh", "-c"]
        words += [f'echo {hosts[number]} > /proc/sys/kernel/hostname; exec "$@"', "sh", *torchrun(command, *options)]
        with open(logs[number], "a") as log:
            return subprocess.Popen(words, env=environment, cwd=runs.folder, stdout=log, stderr=log)

    agents = [start_agent(0), start_agent(1)]
    is_down = True
    try:
        while agents[0].poll() is None:
            # The link comes back once the run has noticed.
            if is_down and "no step has ended" in logs[0].read_text():
                ip(f"-n {hosts[0]} link set cable up")
                is_down = False
            time.sleep(0.1)
    finally:
        kill_with_children(agents)
    said = [log.read_text() for log in logs]
    assert agents[0].returncode == 0, said[0][-4000:] + said[1][-4000:]
    (line,) = [line for line in said[0].splitlines() if "no step has ended" in line]
    assert "after step 6" in line, line
    assert "process 1 does not answer" in line, line
    attempts = check_steps(runs, "hosts", 10)
    assert [len(attempts[step, 2][0]) for step in range(1, 11)] == [1, 1, 1, 1, 2, 2, 1, 1, 1, 1]
