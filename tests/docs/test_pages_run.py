"""Every page's blocks run from top to bottom, in the order of the page, on a small model."""

import os
import random
import re
import shutil
import subprocess
import sys

import pytest
from pages import PAGES, ROOT, blocks

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


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_a_page_runs(page, workspace, tmp_path):
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
