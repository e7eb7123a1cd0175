"""Files that start a run: they parse, hold the plan's numbers, and go on with a run that was interrupted."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from test_receipt import around, plan

from lit_gpt.cli import main
from lit_gpt.errors import UserError
from lit_gpt.planning.launch import LAUNCHERS, launch_file

EXAMPLES = Path(__file__).parents[2] / "configs/launch"


def planned(devices=32, name="My run", kind="cuda", **changes):
    run = plan()["run"] | {"name": name, "layout": {"data": devices}}
    return plan(run=run, device={"kind": kind, "name": "h100" if kind == "cuda" else "cpu"}, **changes)


def fit_options(words):
    """Options of the command that trains, as argparse would see them."""
    words = words[words.index("fit") + 1 :]
    words = [part for word in words for part in word.split("=", 1)]
    return dict(zip(words[::2], words[1::2], strict=True))


def commands(script):
    """The commands of a shell script, each as its words, after bash has accepted it."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = script.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if not line.startswith("#")]


def the_one(found, word):
    return next(words for words in found if word in words)


def test_slurm():
    text = launch_file(planned(hours=around(10.0)), "my run.yaml", "slurm", file="job.sh")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == ("4", "8", "8")
    assert int(options["time"]) == pytest.approx(60 * 10 * 1.5 * 1.5)
    assert "requeue" in options
    assert options["signal"] == "TERM@120"  # to the tasks, which save and exit with 143
    found = commands(text)
    given = fit_options(the_one(found, "srun"))
    assert given == {
        "--config": "my run.yaml", "--ckpt_path": "auto", "--trainer.num_nodes": "4", "--trainer.devices": "8"
    }  # fmt: skip
    assert "sbatch job.sh" in text


@pytest.mark.parametrize(("code", "is_requeued"), [(0, False), (1, False), (75, True), (143, True)])
def test_slurm_queues_a_job_again_that_was_interrupted(tmp_path, code, is_requeued):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    for name, body in {"srun": f"exit {code}", "scontrol": f"echo $@ > {tmp_path}/requeued"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    script = launch_file(planned(), "my.yaml", "slurm")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "requeued").exists() == is_requeued
    assert not is_requeued or (tmp_path / "requeued").read_text() == "requeue 7\n"


def torchrun_words(launcher, text):
    """What torchrun is given, as its own parser reads it."""
    from torch.distributed.run import get_args_parser

    if launcher == "torchrun":
        replaced = re.sub(r"\$\{[A-Z1_]+:[-?]([^}]*)\}", r"\1", text)
        words = the_one(commands(replaced), "torchrun")
    else:
        script = yaml.safe_load(text)["run"].replace("$first", "first").replace('"$SKYPILOT_TASK_ID"', "task")
        words = the_one(commands(script), "torchrun")
    words = words[words.index("torchrun") + 1 :]
    return get_args_parser().parse_args(words), fit_options(words)


@pytest.mark.parametrize("launcher", ["torchrun", "skypilot"])
def test_torchrun(launcher):
    text = launch_file(planned(), "my.yaml", launcher)
    options, given = torchrun_words(launcher, text)
    assert options.nnodes.split(":")[-1] == "4"
    assert options.nproc_per_node == "8"
    assert options.rdzv_backend == "c10d"
    assert options.rdzv_endpoint.endswith(":29500")
    assert options.rdzv_id != "none"  # a name of its own, by which a run's lock is recognized
    assert options.max_restarts > 0
    assert (options.module, options.training_script) == (True, "lit_gpt")
    assert given["--ckpt_path"] == "auto"
    assert (given["--trainer.num_nodes"], given["--trainer.devices"]) == ("1", "auto")
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in text


def test_kubernetes():
    job = yaml.safe_load(launch_file(planned(hours=around(10.0)), "my.yaml", "kubernetes"))
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert job["metadata"]["name"] == "my-run"
    spec = job["spec"]
    assert spec["nprocPerNode"] == "8"
    assert spec["elasticPolicy"]["rdzvBackend"] == "c10d"
    assert spec["elasticPolicy"]["maxReplicas"] == spec["pytorchReplicaSpecs"]["Worker"]["replicas"] == 4
    pod = spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"  # the name that the operator looks for
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]
    given = fit_options(container["command"] + container["args"])
    assert given["--config"] == "my.yaml"
    assert given["--ckpt_path"] == "auto"
    assert given["--trainer.default_root_dir"] == "/runs"


def test_skypilot():
    task = yaml.safe_load(launch_file(planned(), "my.yaml", "skypilot"))
    assert task["num_nodes"] == 4
    assert task["resources"]["accelerators"] == "H100:8"
    assert list(task["file_mounts"]) == ["/runs"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("name", ["run", 'odd: "name" #1', "$(touch x)", "'"])
def test_any_name_and_path(launcher, name):
    config = f"configs/{name}.yaml"
    text = launch_file(planned(devices=2, name=name, kind="cpu"), config, launcher)
    assert "gpu" not in text.partition("containers")[2]
    if launcher == "slurm":
        given = fit_options(the_one(commands(text), "srun"))
    elif launcher == "kubernetes":
        (container,) = yaml.safe_load(text)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
        given = fit_options(container["command"] + container["args"])
    else:
        _, given = torchrun_words(launcher, text)
    assert given["--config"] == config


def test_what_does_not_fit_is_refused(tmp_path):
    for options, words in (({"launcher": "ssh"}, r"ssh.*slurm"), ({"launcher": "slurm", "per_node": 5}, r"5.*32")):
        with pytest.raises(UserError, match=words):
            launch_file(planned(), "my.yaml", **options)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(planned()))
    words = ["plan", "launch", "--plan", str(file), "--config", "my.yaml", "--out", str(tmp_path / "job.sh"), "--to"]
    assert main([*words, "ssh"]) == 2
    assert not (tmp_path / "job.sh").exists()
    assert main([*words, "slurm"]) == 0
    assert (tmp_path / "job.sh").read_text().startswith("#!/bin/bash")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_examples_are_what_the_command_writes(launcher):
    config = "configs/pretrain/streaming_fineweb_edu.yaml"
    values = json.loads((EXAMPLES / "plan.json").read_text())
    name = LAUNCHERS[launcher]
    assert (EXAMPLES / name).read_text() == launch_file(values, config, launcher, file=name)
