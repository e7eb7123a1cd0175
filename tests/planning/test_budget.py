"""A budget becomes a run: the best size by brute force, the dial, and budgets that pay for nothing."""

import numpy as np
import pytest
import yaml

from lit_gpt.cli import main
from lit_gpt.errors import UserError
from lit_gpt.planning.budget import best_size, config_of_depth, propose, propose_ladder
from lit_gpt.planning.laws import PUBLISHED, effective_tokens


def test_the_best_size_is_chinchillas_equation():
    found, expected = best_size(PUBLISHED, 1e21), PUBLISHED.optimum(1e21)
    assert found == pytest.approx(expected, rel=0.01)


def test_inference_asks_for_smaller_models_and_more_tokens():
    plain, served = best_size(PUBLISHED, 1e21), best_size(PUBLISHED, 1e21, inference_tokens=1e11)
    assert served[0] < plain[0]
    assert 6 * served[0] * served[1] + 2 * served[0] * 1e11 == pytest.approx(1e21)


def test_a_small_corpus_asks_for_larger_models():
    params, tokens = best_size(PUBLISHED, 1e21, unique_tokens=1e9)
    assert params > best_size(PUBLISHED, 1e21)[0]
    losses = [
        PUBLISHED.loss(n, effective_tokens(1e21 / 6 / n, 1e9))
        for n in np.exp(np.linspace(np.log(1e8), np.log(1e12), 999))
    ]
    assert PUBLISHED.loss(params, effective_tokens(tokens, 1e9)) == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_a_depth_is_a_model_and_its_own_best_run(depth):
    run = propose(PUBLISHED, None, depth)
    assert (run.config.n_layer, run.config.n_embd) == (depth, 64 * depth)
    params, tokens = best_size(PUBLISHED, run.flops)
    assert run.config.num_parameters() == pytest.approx(params, rel=0.05)
    assert run.tokens == pytest.approx(tokens, rel=0.05)


def test_a_budget_takes_the_nearest_depth():
    run = propose(PUBLISHED, 1e19, vocab_size=32000)
    wanted, _ = best_size(PUBLISHED, 1e19)
    sizes = {depth: config_of_depth(depth, 32000, 256).num_parameters() for depth in (run.depth - 1, run.depth + 1)}
    assert all(
        abs(np.log(run.config.num_parameters() / wanted)) <= abs(np.log(size / wanted)) for size in sizes.values()
    )
    assert run.flops == pytest.approx(1e19, rel=0.02)


def test_a_model_too_large_for_its_budget_takes_smaller_batches_and_steps():
    small, large = (propose(PUBLISHED, 4e12, depth, 1024, 128) for depth in (2, 6))
    assert small.steps >= 200
    assert (large.batch_sequences, large.steps) == (2, 236)  # 236 * 2 * 128 tokens of 11 M parameters: 4e12 FLOPs
    # 0.3118 (120 N^2)^-0.125 for the N of depth 6, and the root of 2 of 30 sequences, 0.292 (4e12)^0.3271 / 128.
    assert large.lr == pytest.approx(0.3118 * (120 * 11_015_808**2) ** -0.125 * (2 / 30) ** 0.5, rel=0.1)
    with pytest.raises(UserError, match="at least") as refusal:
        propose(PUBLISHED, 1e11, 6, 1024, 128)
    least = float(str(refusal.value).split("at least ")[1].split()[0])
    assert propose(PUBLISHED, least, 6, 1024, 128).steps == 20


@pytest.mark.parametrize("flops", [1, 1e9])
def test_a_budget_too_small_for_any_model(flops):
    with pytest.raises(UserError, match="at least") as refusal:
        propose(PUBLISHED, flops)
    least = float(str(refusal.value).split("at least ")[1].split()[0])
    assert propose(PUBLISHED, least).steps >= 20


def test_a_budget_too_small_for_its_inference_tokens():
    with pytest.raises(UserError, match=r"smallest model take 2e\+15"):
        propose(PUBLISHED, 1e12, inference_tokens=1e12)


def test_the_command_writes_a_run_that_fit_accepts(tmp_path, capsys):
    from lit_gpt.lightning_cli import CLI

    out = tmp_path / "run.yaml"
    assert main(["plan", "budget", "--flops", "1e13", "--out", str(out), "--block_size", "64"]) == 0
    values = yaml.safe_load(out.read_text())
    assert values["trainer"]["max_steps"] >= 20
    assert values["data"]["init_args"]["block_size"] == 64
    with pytest.raises(SystemExit) as stopped:
        CLI(["fit", "--config", str(out), "--print_config"])
    assert stopped.value.code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ("flops", "depth")),
        (["--flops", "1e15", "--hours", "2"], ("flops", "hours")),
        (["--dollars", "5", "--device", "l4"], ("l4", "price_per_hour")),
        (["--hours", "1", "--device", "h1000"], ("h1000", "h100")),
        (["--depth", "0"], ("depth", "1")),
        (["--flops", "1e8"], ("1e+08", "at least")),
    ],
)
def test_a_bad_budget_is_one_line_and_no_file(tmp_path, capsys, options, words):
    out = tmp_path / "run.yaml"
    assert main(["plan", "budget", "--out", str(out), *options]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words), err
    assert not out.exists()


def test_a_ladder_separates_sizes_from_tokens():
    runs = propose_ladder(PUBLISHED, 3e14, block_size=64)
    assert len(runs) == 9
    depths = sorted({run.depth for run in runs})
    assert len(depths) == 3
    for depth in depths:
        flops = sorted(run.flops for run in runs if run.depth == depth)
        assert flops == pytest.approx([3e14 / 9, 1e14, 3e14], rel=0.1)
    with pytest.raises(UserError, match="at least") as refusal:
        propose_ladder(PUBLISHED, 1e9)
    least = float(str(refusal.value).split("at least ")[1].split(",")[0])
    assert min(run.steps for run in propose_ladder(PUBLISHED, least)) >= 20
    chosen = propose_ladder(PUBLISHED, 1e13, 512, 64, depths=[4, 2, 3, 2])
    assert [run.depth for run in chosen] == [2, 2, 2, 3, 3, 3, 4, 4, 4]
    for depths, words in (([2, 3, 2], "depths is 2.*at least 3"), ([0, 2, 3], "depths is 0")):
        with pytest.raises(UserError, match=words):
            propose_ladder(PUBLISHED, 1e13, 512, 64, depths=depths)


def test_the_command_writes_a_ladder_that_plan_reads(tmp_path, capsys):
    out = tmp_path / "ladder"
    assert main(["plan", "ladder", "--out", str(out), "--flops", "3e14", "--block_size", "64"]) == 0
    files = sorted(out.iterdir())
    assert len(files) == 9
    scored = set()
    for file in files:
        values = yaml.safe_load(file.read_text())
        trainer = values["trainer"]
        scored.add((trainer["limit_val_batches"], values["data"]["init_args"]["eval_batch_size"]))
        assert trainer["max_steps"] % trainer["val_check_interval"] == 0  # the last validation is at the end
        assert trainer["name"] == file.stem
    assert len(scored) == 1  # all losses are of the same windows
    assert "fit-law --runs" in capsys.readouterr().out
    assert main(["plan", "ladder", "--out", str(tmp_path / "none"), "--flops", "1e9"]) == 2
    assert not (tmp_path / "none").exists()
