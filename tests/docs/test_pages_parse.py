"""Every command on every page is one that the parsers accept, with files and options that exist."""

import ast
import json
import re
import shlex

import pytest
import yaml
from pages import NEEDS, PAGES, ROOT, blocks

from lit_gpt.cli import TRAINER_COMMANDS, _with_lists, build_parser

COMMANDS = [
    pytest.param(page, command, id=f"{page.stem}-{number}")
    for page in [*PAGES, ROOT / "README.md"]
    for number, command in enumerate(
        command
        for block in blocks(page)
        if block.language == "sh"
        for command in block.commands
        if "-m lit_gpt" in command
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages write, and the repository's configs."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "configs").symlink_to(ROOT / "configs")
    for page in PAGES:
        for block in blocks(page):
            if block.title:
                (folder / block.title).write_text(block.text)
    return folder


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_parses(page, command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    words = shlex.split(re.split(r"-m lit_gpt ", command, maxsplit=1)[1])
    words = words[: next((n for n, word in enumerate(words) if word in ("|", ">", "&&")), len(words))]
    if words[0] in TRAINER_COMMANDS:
        from lit_gpt.lightning_cli import CLI, take_fit_options

        words, _ = take_fit_options(words)
        words = [word for word in words if "quickstart/config.yaml" not in word or word == "--config"]
        if words[1] == "--config" and (len(words) == 2 or words[2].startswith("--")):
            words.insert(2, "configs/quickstart.yaml")  # the config that a run of the quickstart has
        with pytest.raises(SystemExit) as stopped:
            CLI(words if "help" in words[1] else [*words, "--print_config"])
        assert stopped.value.code == 0, capsys.readouterr().err
    else:
        build_parser().parse_args(_with_lists(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_well_formed(page):
    for block in blocks(page):
        assert block.needs in {"", *NEEDS}
        if block.language == "yaml":
            assert yaml.safe_load(block.text)
        elif block.language == "python":
            compile(block.text, str(page), "exec")
        elif block.language == "json":
            assert [json.loads(line) for line in block.text.splitlines()]
        else:
            assert block.language in {"sh", "text", "toml"}


def literal(node: ast.AST) -> str:
    """The text of a string literal, with `...` for the values of an f-string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_messages_of_the_troubleshooting_page_exist():
    page = (ROOT / "docs" / "pages" / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [text for text in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) if " " in text]
    sources = "\n".join(
        literal(node)
        for path in sorted((ROOT / "lit_gpt").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.JoinedStr, ast.Constant))
    )
    assert len(quoted) > 20
    # argparse's own messages are not in the package
    missing = [text for text in quoted if text not in sources and "unrecognized" not in text]
    assert not missing


def test_pages_are_found():
    assert len(PAGES) > 20
    assert len(COMMANDS) > 40
