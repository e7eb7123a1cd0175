"""`doctor` names versions, devices, disk, and each extra with the line that installs what is missing."""

import importlib.metadata

import torch

from lit_gpt.cli import main
from lit_gpt.planning import machine


def test_the_report_names_versions_devices_and_extras(tmp_path, capsys):
    assert main(["doctor", "--folder", str(tmp_path / "not" / "there")]) == 0
    text = capsys.readouterr().out
    assert f"torch {torch.__version__}" in text
    assert importlib.metadata.version("lightning") in text
    for word in ("CPU", "fast precision", "memory", "disk", "extra serve", "extra adapters"):
        assert word in text


def test_a_missing_library_comes_with_its_remedy(monkeypatch):
    installed = machine.installed_version
    monkeypatch.setattr(machine, "installed_version", lambda name: None if name == "uvicorn" else installed(name))
    facts = {fact.name: fact for fact in machine._extras()}
    assert "uvicorn" in facts["extra serve"].value
    assert "[serve]" in facts["extra serve"].remedy
    assert facts["extra adapters"].remedy == ""
