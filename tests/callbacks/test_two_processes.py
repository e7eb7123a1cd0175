"""The callbacks on two DDP processes (gloo): both decide alike, and nobody waits for ever."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo"),
]
WORKER = Path(__file__).parent / "ddp_worker.py"


def run_two(scenario, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": "0"}
        command = [sys.executable, "-W", "ignore", str(WORKER), scenario, str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | place | {"OMP_NUM_THREADS": "1"}, **pipes))
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]


def test_all_callbacks_beside_one_another(tmp_path):
    first, second = run_two("everything", tmp_path)
    assert first["losses"] != second["losses"]
    assert first["average"] == second["average"]
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"best.json", "step-00000002.ckpt", "step-00000006.ckpt", "step-00000008.ckpt"}


def test_a_nan_of_one_process_is_skipped_by_both(tmp_path):
    first, second = run_two("skips", tmp_path)
    assert first == second
    assert first["skipped"] == 1
    assert all(value == value for value in first["weights"])
    assert len(list((tmp_path / "run").glob("nonfinite-step-00000003-rank-*.pt"))) == 2


def test_a_nan_of_one_process_stops_both(tmp_path):
    first, second = run_two("stops", tmp_path)
    for found in (first, second):
        assert "loss of process 1 is not finite at optimizer step 3" in found["error"]


def test_documents_are_added_up_over_processes(tmp_path):
    run_two("predicts", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    # two batches on each process; the first counts 1 a window, the second 2
    assert [(line["document"], line["num_tokens"], line["num_bytes"]) for line in lines] == [
        (0, 6, 18),
        (1, 2, 6),
        (2, 4, 12),
    ]


def test_a_full_disk_ends_both(tmp_path):
    first, second = run_two("full_disk", tmp_path)
    assert first == second
    assert "no space to write" in first["error"]
