"""What importing and exporting take at most: measured in a process of its own, against the model's size."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.huggingface import export_hf, open_hf
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.models import GPT, get_preset
from lit_gpt.models.families.ladder import shrink


def status(key):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":")]
    return 1024 * int(line.split()[1])


def importing(source, out):  # as `import` does: from disk to disk
    resolved = resolve_model(source)
    save_bundle(out, resolved.config, resolved.load_state_dict(), dtype=sys.argv[3] if len(sys.argv) > 3 else None)


def loading(source, out):  # as `generate` does: from disk into a model
    resolved = resolve_model(source)
    with torch.device("meta"):
        model = GPT(resolved.config)
    model.load_state_dict(resolved.load_state_dict(), assign=True)
    return model


def exporting(source, out):  # a model in memory, as after training
    global model
    export_hf(model.config, model.state_dict(), out)


task, folder = globals()[sys.argv[1]], Path(sys.argv[2])
tiny, large = folder / "tiny", folder / "large"
model = loading(tiny, None)
task(tiny, folder / "out-tiny")  # what the libraries take once is not the model's
if task is exporting:
    model = loading(large, None)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
result = task(large, folder / "out")
print(json.dumps({"peak": status("VmHWM") - before}))
"""

MAKE = """
import sys
from pathlib import Path
from lit_gpt.checkpoints.huggingface import export_hf
from lit_gpt.models import GPT, get_preset
from lit_gpt.models.families.ladder import shrink
folder = Path(sys.argv[2])
for name, width, vocab in (("tiny", 64, 64), ("large", 1024, 4096)):
    config = shrink(get_preset(sys.argv[1]), n_embd=width, vocab_size=vocab, n_layer=4)
    export_hf(config, GPT(config).state_dict(), folder / name, max_shard_size="60MB")
print(sum(file.stat().st_size for file in (folder / "large").glob("*.safetensors")))
"""


def run(program, *words):
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=["phi-4", pytest.param("pythia-1.4b", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    """Models whose matrices are joined on disk, which must be copied on the way in and out; in several shards."""
    folder = tmp_path_factory.mktemp("memory")
    size = run(MAKE, request.param, folder)
    assert size > 150e6
    assert len(list((folder / "large").glob("model-*.safetensors"))) > 2
    return folder, size


@pytest.mark.parametrize("task", ["importing", "loading", pytest.param("exporting", marks=pytest.mark.slow)])
def test_peak_memory(folder, task, tmp_path):
    folder, size = folder
    (tmp_path / "tiny").symlink_to(folder / "tiny")
    (tmp_path / "large").symlink_to(folder / "large")
    peak = run(PROGRAM, task, tmp_path)["peak"]
    # `loading` leaves the model behind; the others hold a few tensors of it at a time (the largest is a tenth here),
    # of which malloc may not give everything back at once.
    bound = {"loading": 1.2, "importing": 0.8, "exporting": 0.4}[task]
    print(f"{task}: {peak / size:.2f} of the model's {size / 1e6:.0f} MB")
    assert peak < bound * size


@pytest.mark.slow
def test_peak_memory_of_a_conversion(folder, tmp_path):
    folder, size = folder
    (tmp_path / "tiny").symlink_to(folder / "tiny")
    (tmp_path / "large").symlink_to(folder / "large")
    assert run(PROGRAM, "importing", tmp_path, "bfloat16")["peak"] < 0.8 * size
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) < 0.51 * size
