"""`fit --rehearse 3m`: a few steps of a run through everything that the run will go through.

The user's own YAML and options are run by `python -m lit_gpt fit` in processes of their own, in a scratch folder, with
few steps and short validations:

1. straight: to the end, with a checkpoint half-way;
2. again: the same from the start, so that what depends on the clock, or on anything but data, seed and step, shows;
3. killed: SIGKILL right after the first step behind the checkpoint;
4. resumed: from that checkpoint, to be equal to the straight run bit for bit in data, loss, weights and optimizer;
5. on one device, where the run has several;
6. validated, sampled, exported and the export sampled.

What was equal is certified by hashes, what differs is named, and what could not be tried is listed.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

STEPS = 6
"""Of a rehearsed run; the checkpoint is written, and the run is killed, half-way."""
HALF = STEPS // 2
FAILED = 3
"""Exit status of a rehearsal that found a fault."""
TOLERANCE = 1e-3
"""Relative difference of losses on another number of devices: the order of sums differs, the samples do not."""


@dataclass
class Check:
    """One thing that a rehearsal tried.

    Attributes:
        name: What was tried.
        result: `equal`, `done`, `differs`, `failed` or `not tried`.
        detail: What was equal, or what went wrong.
    """

    name: str
    result: str
    detail: str = ""


@dataclass
class Rehearsal:
    """Runs a user's `fit` command in small.

    Args:
        words: Arguments of `fit`, without `--rehearse`.
        seconds: Time for everything; what does not fit is not tried.
        folder: Scratch folder.
    """

    words: list[str]
    seconds: float
    folder: Path
    checks: list[Check] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    def run(self) -> bool:
        """Try everything that there is time for; return whether no check failed."""
        if not self._certified():
            return False
        straight = self.folder / "straight"
        self._try_validate()
        sampled = self._try_tool("sample", "generate", "--model", straight, "--prompt", "The", "--max_new_tokens", "4")
        if sampled:
            bundle = self.folder / "export"
            if self._try_tool("export", "export", "--model", straight, "--out", bundle):
                options = ("--prompt", "The", "--max_new_tokens", "4")
                self._try_tool("sample the export", "generate", "--model", bundle, *options)
        else:
            self._note("export", "not tried", "the model cannot be sampled")
        return all(check.result not in ("differs", "failed") for check in self.checks)

    # ---- training

    def _certified(self) -> bool:
        """Train straight, again, killed and resumed; return whether the run is as it should be."""
        straight = self._fit("straight")
        if straight is None:
            return False
        self._note("train", "done", f"{STEPS} steps, validated and saved at steps {HALF} and {STEPS}")
        again = self._fit("again")
        if again is None:
            return False
        if not self._compare("start again", straight, again):
            return False
        killed = self._fit("killed", kill_before=HALF + 2)
        if killed is None:
            return False
        checkpoint = self.folder / "killed" / "checkpoints" / f"step-{HALF:08d}.ckpt"
        if not checkpoint.is_dir():
            self._note("save", "failed", f"there is no checkpoint of step {HALF} after the kill")
            return False
        resumed = self._fit("killed", ("--ckpt_path", "last"), record="resumed")
        if resumed is None:
            return False
        if not self._compare("kill and resume", straight, resumed):
            return False
        self._try_other_devices(straight)
        return True

    def _fit(
        self, name: str, options: tuple[str, ...] = (), kill_before: int | None = None, record: str | None = None
    ) -> list[dict[str, Any]] | None:
        """Run `fit` and return what it recorded; None: it failed, which is noted."""
        file = self.folder / f"{record or name}.jsonl"
        init_args = {"file": str(file), "kill_before": kill_before}
        recorder = json.dumps({"class_path": "lit_gpt.callbacks.StepRecord", "init_args": init_args})
        settings = {
            "default_root_dir": self.folder,
            "name": name,
            "max_steps": STEPS,
            "val_check_interval": HALF,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": "false",
            "logger": "false",
        }
        words = [f"--trainer.{key}={value}" for key, value in settings.items()]
        done = self._python(
            "fit", *_without_checkpoint(self.words), *words, f"--trainer.callbacks+={recorder}", *options
        )
        if done is None:
            self._note(record or name, "not tried", "no time was left; give --rehearse more")
            return None
        if kill_before is not None:
            if done.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL, 1) or not file.exists():
                self._note(record or name, "failed", _last_line(done))
                return None
        elif done.returncode != 0:
            self._note(record or name, "failed", _last_line(done))
            return None
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def _compare(self, name: str, expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> bool:
        """Note whether two records are equal in the steps that both have; return whether they are."""
        steps = {entry["step"]: entry for entry in expected if "step" in entry}
        own = [entry for entry in found if "step" in entry]
        if not own:
            self._note(name, "failed", "no step was recorded")
            return False
        for entry in own:
            other = steps[entry["step"]]
            if entry["batch"] != other["batch"]:
                self._note(
                    name,
                    "differs",
                    f"the batch of step {entry['step']} is another one: the order of the DataModule's "
                    "samples depends on something other than the data, the seed and the step (the clock, a set, a "
                    "global random state)",
                )
                return False
            if entry["loss"] != other["loss"]:
                gap = float.fromhex(entry["loss"]) - float.fromhex(other["loss"])
                self._note(
                    name,
                    "differs",
                    f"the loss of step {entry['step']} differs by {gap:.2g} on the same batch: the step depends on "
                    "more than weights, batch and seed, or kernels of the device are not deterministic",
                )
                return False
        for part in ("weights", "optimizer"):
            if expected[-1].get(part) != found[-1].get(part):
                self._note(name, "differs", f"the {part} at the end differ although every loss is equal")
                return False
        validations = {entry["validated"]: entry["loss"] for entry in expected if "validated" in entry}
        for entry in found:
            if "validated" in entry and validations.get(entry["validated"]) != entry["loss"]:
                self._note(name, "differs", f"the validation at step {entry['validated']} has another loss")
                return False
        span = f"{own[0]['step']} to {own[-1]['step']}"
        self._note(name, "equal", f"batches and losses of steps {span}, validation, weights, optimizer: bit for bit")
        return True

    def _try_other_devices(self, straight: list[dict[str, Any]]) -> None:
        import torch

        from lit_gpt.instantiate import read_yaml

        config = read_yaml(self.folder / "straight" / "config.yaml", "the config of the rehearsed run")
        trainer = config.get("trainer") or {}
        devices = trainer.get("devices", "auto")
        if devices in ("auto", -1, "-1"):
            devices = max(1, torch.cuda.device_count())
        count = len(devices) if isinstance(devices, list) else int(devices)
        if int(trainer.get("num_nodes") or 1) > 1:
            self._note("several nodes", "not tried", "a rehearsal runs on this node alone")
        if count < 2:
            self._note("another number of devices", "not tried", "the run has one device")
            return
        alone = self._fit("alone", ("--trainer.devices=1", "--trainer.strategy=auto"))
        if alone is None:
            return
        validations = [
            {entry["validated"]: float.fromhex(entry["loss"]) for entry in record if "validated" in entry}
            for record in (straight, alone)
        ]
        gap = max(
            (abs(validations[1][step] / loss - 1) for step, loss in validations[0].items() if step in validations[1]),
            default=0.0,
        )
        detail = f"validation losses on 1 and on {count} devices differ by {gap:.1g}"
        self._note("another number of devices", "equal" if gap <= TOLERANCE else "differs", detail)

    # ---- after training

    def _try_validate(self) -> None:
        settings = (f"--trainer.default_root_dir={self.folder}", "--trainer.name=straight", "--trainer.logger=false")
        short = ("--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false", "--ckpt_path=last")
        self._report("validate", self._python("validate", *_without_checkpoint(self.words), *settings, *short))

    def _try_tool(self, name: str, *words: Any) -> bool:
        return self._report(name, self._python(*words))

    def _report(self, name: str, done: "subprocess.CompletedProcess[str] | None") -> bool:
        if done is None:
            self._note(name, "not tried", "no time was left; give --rehearse more")
        elif done.returncode:
            # What a kind of model cannot do is refused in one line with status 2, and is no fault of the run.
            refused = done.returncode == 2 and name in ("sample", "export")
            self._note(name, "not tried" if refused else "failed", _last_line(done))
        else:
            self._note(name, "done")
        return done is not None and done.returncode == 0

    def _python(self, *words: Any) -> "subprocess.CompletedProcess[str] | None":
        """Run a command of this package; None: there was no time left, or not enough."""
        left = self._end - time.monotonic()
        if left <= 0:
            return None
        command = [sys.executable, "-m", "lit_gpt", *map(str, words)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes of the other devices
            process.communicate()
            return None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def _note(self, name: str, result: str, detail: str = "") -> None:
        self.checks.append(Check(name, result, detail))
        print(f"{result:10} {name}" + (f": {detail}" if detail else ""), flush=True)


def rehearse(words: list[str], duration: str) -> int:
    """Rehearse a `fit` command and print what was found.

    Args:
        words: Arguments of `fit`, without `--rehearse`.
        duration: `90s`, `3m` or `1h`.

    Returns:
        The exit status: 0, or 3 if something failed or differed.

    Raises:
        UserError: The duration cannot be read.
    """
    seconds = read_duration(duration)
    with tempfile.TemporaryDirectory(prefix="lit_gpt-rehearsal-") as folder:
        rehearsal = Rehearsal(words, seconds, Path(folder))
        passed = rehearsal.run()
    tried = [check for check in rehearsal.checks if check.result != "not tried"]
    print(f"rehearsal {'passed' if passed else 'failed'}: {len(tried)} of {len(rehearsal.checks)} checks were tried")
    return 0 if passed else FAILED


def read_duration(text: str) -> float:
    """Return the seconds that `90s`, `3m` or `1h` stands for.

    Raises:
        UserError: It is something else, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--rehearse {text} is no duration; write the time for it as 90s, 3m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _without_checkpoint(words: list[str]) -> list[str]:
    """Return the words without `--ckpt_path` and its value, because a rehearsal starts from the first step."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--ckpt_path":
            skip = True
        elif not word.startswith("--ckpt_path="):
            kept.append(word)
    return kept


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    chosen = (errors or lines or [f"exit status {done.returncode}"])[-1]
    return re.sub(r"^lit_gpt \w+: error: ", "", chosen.strip())[:400]
