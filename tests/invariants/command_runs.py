"""Runs of the real command line on a small corpus, recorded step by step."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import yaml

HERE = Path(__file__).parent

CONFIG = {
    "seed_everything": 7,
    "trainer": {
        "name": "run",
        "max_steps": 60,
        "accelerator": "cpu",
        "val_check_interval": 15,
        "log_every_n_steps": 5,
        "callbacks": [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 4, "keep_last": 3}}],
    },
    "model": {
        "class_path": "PretrainModule",
        "init_args": {
            "preset": "tiny",
            "overrides": {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "dropout": 0.1},
            "optimizer": {"class_path": "MuonAdamW", "init_args": {"lr": 0.01}},
            "schedule": {"class_path": "Cosine", "init_args": {"warmup_steps": 5}},
        },
    },
    "data": {
        "class_path": "TextDataModule",
        "init_args": {
            "block_size": 16,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "vocab_size": 300,
            "val_fraction": 0.2,
            "test_fraction": 0.1,
        },
    },
}


class Runs:
    """Starts the command line in a folder, each start recorded under its own name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        texts = folder / "texts"
        texts.mkdir()
        for number in range(60):
            # An epoch is about 40 steps: 60 steps cross its end.
            words = " ".join(f"{(number * 37 + k * k) % 101}:{k % 7}" for k in range(18 + number % 11))
            (texts / f"{number:03}.txt").write_text(f"Text {number}. {words}\n")
        CONFIG["data"]["init_args"]["files"] = str(texts)

    def command(self, start: str, *arguments: str, root: str = "runs", subcommand: str = "fit") -> list[str]:
        """The words of one start; `--key value` pairs go on the command line as a user would write them."""
        config = json.loads(json.dumps(CONFIG))
        config["trainer"]["default_root_dir"] = str(self.folder / root)
        config["trainer"]["callbacks"].append(
            {"class_path": "recorder.Recorder", "init_args": {"folder": str(self.folder / "records"), "start": start}}
        )
        if subcommand != "fit":
            config["trainer"]["callbacks"] = []
        path = self.folder / f"{start}.yaml"
        path.write_text(yaml.safe_dump(config))
        return [sys.executable, "-m", "lit_gpt", subcommand, "--config", str(path), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """One thread a process, so that sums are added in one order; a cache of its own."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "LIT_GPT_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, start: str, *arguments: str, expect: int = 0, **kwargs: str) -> subprocess.CompletedProcess:
        """Run to the end."""
        done = self.process(self.command(start, *arguments, **kwargs))
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def process(self, command: list[str], timeout: float = 300) -> subprocess.CompletedProcess:
        """Run a command in the folder to its end."""
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout
        )

    def interrupt(
        self, start: str, *arguments: str, after_lines: int, how: int = signal.SIGKILL, **kwargs: str
    ) -> subprocess.CompletedProcess:
        """Run until so many lines are recorded, then send a signal."""
        with open(self.folder / f"{start}.log", "w+") as log:
            process = subprocess.Popen(
                self.command(start, *arguments, **kwargs), env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )
            deadline = time.monotonic() + 120
            while len(self.lines(start)) < after_lines and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            process.send_signal(how)
            process.wait(60)
            log.seek(0)
            return subprocess.CompletedProcess(process.args, process.returncode, log.read())

    def lines(self, start: str, rank: int = 0) -> list[dict]:
        """Everything that one start recorded."""
        path = self.folder / "records" / f"{start}-rank{rank}.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def steps(self, start: str, rank: int = 0) -> dict[int, dict]:
        """Its optimizer steps by number."""
        return {line["step"]: line for line in self.lines(start, rank) if "losses" in line}

    def validations(self, start: str) -> dict[int, str]:
        """Its validation losses by step."""
        return {line["step"]: line["val_loss"] for line in self.lines(start) if "val_loss" in line}

    def checkpoints(self, root: str = "runs") -> list[Path]:
        """Checkpoints of the run, oldest first."""
        return sorted((self.folder / root / "run" / "checkpoints").glob("step-*.ckpt"))


def kill_with_children(processes: Iterable[subprocess.Popen]) -> None:
    """Kill processes and everything that they have started."""
    for parent in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(parent.pid).children(recursive=True), parent]:
                process.kill()
        parent.wait()
