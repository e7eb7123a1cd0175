"""Every ready recipe is right, and runs on a stand-in with the columns of its data set (there is no hub here)."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pipeline_corpora import articles, card, prepare, write_recipe

from lit_gpt.data.pipeline.options import ExecutorOptions
from lit_gpt.data.pipeline.recipe import make_recipe

FOLDER = Path(__file__).parents[3] / "configs" / "data"
NAMES = [
    "stdlib",
    "tinystories",
    "wikitext103",
    "openwebtext",
    "fineweb_edu_10b",
    "fineweb_edu_100b",
    "c4",
    "code",
    "multilingual",
]

# The columns that the data sets have on the hub.
_FINEWEB = {
    "text": "",
    "id": "<urn>",
    "dump": "CC-MAIN-2024-10",
    "url": "http://example.org",
    "language": "en",
    "token_count": 9,
}
SCHEMAS = {
    "roneneldan/TinyStories": {"text": ""},
    "Salesforce/wikitext": {"text": ""},
    "Skylion007/openwebtext": {"text": ""},
    "HuggingFaceFW/fineweb-edu": _FINEWEB,
    "HuggingFaceFW/fineweb-2": _FINEWEB,
    "allenai/c4": {"text": "", "timestamp": "2019-04-25T12:57:54Z", "url": "http://example.org"},
    "codeparrot/codeparrot-clean": {"repo_name": "a/b", "path": "a.py", "content": "", "license": "mit"},
}


def test_there_is_a_recipe_for_each_named_corpus():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_right_and_says_what_it_costs(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    for heading in ("Size:", "License:", "Tokens:", "Disk:", "Time:"):
        assert re.search(rf"^# {heading} +\S", text, re.MULTILINE), heading
    assert f"prepare --config configs/data/{name}.yaml" in text
    written = yaml.safe_load(text)
    executor = ExecutorOptions(**written.pop("executor"))
    recipe = make_recipe(**written, executor=executor)
    assert recipe.out.name == name
    for source in recipe.sources:
        described = source.source.describe()
        assert "license" in source.metadata or "license" in source.source.keep_columns
        assert described["kind"] != "hub" or described["path"] in SCHEMAS


def stand_in(folder: Path, path: str, text_column: str, number: int) -> Path:
    schema = SCHEMAS[path]
    if path == "Salesforce/wikitext":
        rows = []
        for text in articles(12):
            rows += ["", " = A Title = \n", "", *(f" {line} \n" for line in text.split("\n") if line)]
    else:
        rows = articles(12, seed=number)
    (folder / f"{number}.jsonl").write_text("".join(json.dumps(schema | {text_column: row}) + "\n" for row in rows))
    return folder / f"{number}.jsonl"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "stdlib"])
def test_the_recipe_runs_on_a_stand_in(tmp_path, name):
    written = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    sources = []
    for number, source in enumerate(written["sources"]):
        if "hub" in source:
            file = stand_in(tmp_path, source["hub"]["path"], source.get("text_field", "text"), number)
            hub = {k: v for k, v in source["hub"].items() if k in ("streaming", "max_documents", "split")}
            sources.append(source | {"hub": hub | {"path": "json", "data_files": str(file)}})
    written |= {
        "out": str(tmp_path / "out"),
        "sources": sources,
        "tokenizer": {"vocab_size": 300},
        "executor": {"kind": "inline"},
        "val_fraction": 0.0,
        "test_fraction": 0.0,
    }
    written.pop("expected_gigabytes")
    # Prose stands in for every language, and few of its documents for many: rules that judge language are not asked.
    written["steps"] = [step for step in written["steps"] if not {"gopher_repetition", "language"} & set(step)]
    assert prepare(write_recipe(tmp_path / "r.yaml", **written)) == 0
    numbers = card(tmp_path / "out")
    assert [source["left"]["documents"] for source in numbers["sources"] if source["name"] != "stdlib"] == [12] * sum(
        "hub" in source for source in sources
    )
    assert numbers["licenses"]
