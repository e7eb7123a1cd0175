"""The recipes of large runs: each is understood, its layout suits its model, and its header says what a plan says."""

from pathlib import Path

import pytest
import yaml

from lit_gpt.cli import main
from lit_gpt.models import GPTConfig
from lit_gpt.parallel import Layout, check_model
from lit_gpt.parallel.layout import AXES
from lit_gpt.planning.devices import find_device
from lit_gpt.planning.forecast import describe_memory, describe_sent
from lit_gpt.plans import PlannedRun

FOLDER = Path(__file__).parents[2] / "configs" / "recipes"
DEVICES = {"llama31_8b_128k": 8, "llama31_70b": 64, "qwen3_30b_a3b": 32, "deepseek_v3": 2048}
GPU = find_device("h100")


def header(name):
    """Return the comment above a recipe, as one text."""
    lines = (FOLDER / f"{name}.yaml").read_text().split("seed_everything")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


def test_every_recipe_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(DEVICES)


@pytest.mark.parametrize("name", DEVICES)
def test_every_recipe_is_understood(name, capsys):
    for word in ("Hardware:", "Time:", "Expect:", f"plan --config configs/recipes/{name}.yaml --device h100"):
        assert word in header(name)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(FOLDER / f"{name}.yaml"), "--print_config"])
    assert stop.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    trainer, model, data = printed["trainer"], printed["model"]["init_args"], printed["data"]["init_args"]
    axes = trainer["strategy"]["init_args"]
    layout = Layout.resolve(trainer["devices"] * trainer["num_nodes"], **{k: axes[k] for k in (*AXES, "expert")})
    assert layout.world_size == DEVICES[name]
    config = GPTConfig.from_preset(model["preset"], block_size=data["block_size"], **(model["overrides"] or {}))
    assert data["vocab_size"] == config.vocab_size
    check_model(config, layout)
    micro_batch = layout.num_batch_ranks * data["micro_batch_size"]
    assert data["global_batch_size"] % micro_batch == 0
    tokens = trainer["max_steps"] * data["global_batch_size"] * data["block_size"]
    amount = f"{tokens / 1e12:.3g} T" if tokens >= 1e12 else f"{tokens / 1e9:.3g} B"
    assert f"{amount} tokens" in (FOLDER / f"{name}.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_the_header_is_what_a_plan_simulates(name):
    run = PlannedRun(FOLDER / f"{name}.yaml", GPU)
    step = run.simulate(run.micro_batch_size, run.micro_batches)
    assert step.upper_bytes <= GPU.memory
    assert describe_memory(step.memory, step.process_bytes, step.upper_bytes, GPU.memory) in header(name)
    assert describe_sent(run.work(run.micro_batch_size, run.micro_batches).collectives) in header(name)
