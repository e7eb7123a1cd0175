"""Every page's blocks run from top to bottom, in the order of the page, on a small model."""

import os
import random
import re
import shutil
import subprocess
import sys

import pytest
from pages import PAGES, ROOT, blocks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow
SHORT = (
    " --trainer.max_steps 2 --trainer.max_epochs -1 --trainer.val_check_interval 2 --trainer.limit_val_batches 1"
    " --trainer.enable_progress_bar false"
)
"""What is added to a training command: pages train for minutes, tests for two steps."""
RUNNABLE = [page for page in PAGES if any(b.language in ("sh", "python") and not b.needs for b in blocks(page))]


def run(command: str, folder) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    command = re.sub(r"\bpython\b", sys.executable, command)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A checkout's configs, a folder of texts, and the run of a shortened quickstart."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "texts").mkdir()
    subjects, verbs, places = (
        ["ship", "gull", "captain", "storm", "crew", "cook", "lantern", "cat"],
        ["crossed", "passed", "left", "saw", "missed", "feared", "found"],
        ["harbor", "island", "reef", "river", "town", "market"],
    )
    for number in range(150):
        draw = random.Random(number)
        text = "".join(
            f"The {draw.choice(subjects)} {draw.choice(verbs)} the {draw.choice(places)} on day {draw.randrange(10**4)}. "
            for _ in range(30)
        )
        (folder / "texts" / f"{number:03}.txt").write_text(text)
    run("python -m lit_gpt fit --config configs/quickstart.yaml" + SHORT, folder)
    return folder


@pytest.fixture(scope="module")
def chat_model(workspace):
    """A small chat model as a GGUF file, in place of the one that a page downloads."""
    for title in ("chats.jsonl", "sft.yaml"):
        text = next(b.text for page in PAGES for b in blocks(page) if b.title == title)
        (workspace / title).write_text(text)
    run("python -m lit_gpt fit --config sft.yaml --trainer.name chat-model" + SHORT, workspace)
    path = workspace / "SmolLM2-135M-Instruct.Q4_1.gguf"
    run(f"python -m lit_gpt export --model runs/chat-model --out {path.name} --format gguf", workspace)
    return path


def test_the_tags_of_a_run_are_documented(workspace):
    text = (ROOT / "docs" / "pages" / "reference" / "metrics.md").read_text(encoding="utf-8")
    listed = [re.escape(tag) for tag in re.findall(r"`(\w+/[\w<>]+)`", text)]
    patterns = [re.sub(r"<\w+>", r"\\w+", tag) for tag in listed]
    events = EventAccumulator(str(workspace / "runs" / "quickstart"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "epoch"]
    assert "val/bits_per_byte" in tags
    assert [tag for tag in tags if not any(re.fullmatch(pattern, tag) for pattern in patterns)] == []


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_a_page_runs(page, workspace, tmp_path, request):
    if page.stem == "real-model":
        request.getfixturevalue("chat_model")
    folder = tmp_path / "page"
    shutil.copytree(workspace, folder)
    for path in PAGES:  # a page may build on the files of another
        for block in blocks(path):
            if block.title:
                (folder / block.title).write_text(block.text)
    if page.stem in ("index", "get-started"):
        shutil.rmtree(folder / "runs")  # the page makes it
    for block in blocks(page):
        if block.needs or block.language != "sh":
            continue
        for command in block.commands:
            trains = "-m lit_gpt fit" in command and "help" not in command
            run(command + SHORT if trains else command, folder)
