"""Folders and files are whole or absent, whatever stops the writing."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest

from lit_gpt.atomic import TEMPORARY, atomic_file, atomic_folder, remove_atomically, remove_leftovers
from lit_gpt.checkpoints.provenance import verify, write_manifest
from lit_gpt.errors import UserError


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(TEMPORARY)]


def write_old_and_new(target):
    with atomic_folder(target, write_manifest) as folder:
        (folder / "a").write_text("old")
    with atomic_folder(target, write_manifest) as folder:
        (folder / "b").write_text("new")


def test_a_folder_replaces_the_one_before(tmp_path):
    target = tmp_path / "model"
    write_old_and_new(target)
    assert sorted(path.name for path in target.iterdir()) == ["b", "manifest.json"]
    verify(target)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_folder(tmp_path, number):
    target = tmp_path / "model"
    write_old_and_new(target)
    with pytest.raises(UserError, match="no space to write") as caught, atomic_folder(target, write_manifest) as folder:
        (folder / "b").write_text("half")
        raise OSError(number, os.strerror(number))
    assert str(target) in str(caught.value)
    assert (target / "b").read_text() == "new"
    assert leftovers(tmp_path) == []


def test_any_other_error_passes_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_whole_or_as_it_was(tmp_path):
    target = tmp_path / "new" / "file.json"
    with atomic_file(target) as path:
        path.write_text("old")
    with pytest.raises(UserError, match="no space"), atomic_file(target) as path:
        path.write_text("ha")
        raise OSError(errno.ENOSPC, "full")
    assert target.read_text() == "old"
    assert leftovers(target.parent) == []


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    target = tmp_path / "step-00000002.ckpt"
    names = {
        f"{TEMPORARY}step-00000002.ckpt-{dead.pid}": False,
        f"{TEMPORARY}step-00000001.ckpt-{dead.pid}": False,  # another checkpoint of the same run
        f"{TEMPORARY}step-00000002.ckpt-{os.getpid()}": False,  # an earlier process had our number
        f"{TEMPORARY}removed-step-00000001.ckpt-{dead.pid}": False,
        f"{TEMPORARY}step-00000002.ckpt-{os.getppid()}": True,
        f"{TEMPORARY}bundle-{dead.pid}": True,  # of something else
    }
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_leftovers(target)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_removing_is_atomic(tmp_path, monkeypatch):
    target = tmp_path / "model"
    write_old_and_new(target)
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_atomically(target)
    assert not target.exists()


CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from lit_gpt import atomic
    from lit_gpt.checkpoints import provenance

    place, target = sys.argv[1], Path(sys.argv[2])
    die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    for module in (provenance, atomic, os):
        if hasattr(module, place):
            setattr(module, place, die)
            break
    with atomic.atomic_folder(target, provenance.write_manifest) as folder:
        (folder / "a").write_text("new" * 1000)
        if place == "inside":
            die()
    """
)


@pytest.mark.parametrize("place", ["inside", "write_manifest", "publish", "fsync", "rename"])
def test_sigkill_anywhere_leaves_the_old_folder_or_none(tmp_path, place):
    target = tmp_path / "step-00000001.ckpt"
    run = subprocess.run([sys.executable, "-c", CHILD, place, str(target)])
    assert run.returncode == -signal.SIGKILL
    assert not target.exists()
    assert leftovers(tmp_path) != []
    with atomic_folder(target, write_manifest) as folder:  # the next save cleans up and succeeds
        (folder / "a").touch()
    verify(target)
    assert leftovers(tmp_path) == []


LIMITED = textwrap.dedent(
    """
    import sys, torch
    from pathlib import Path
    from lit_gpt.checkpoints.step import write_checkpoint

    rest = {"optimizer_states": [torch.zeros(int(sys.argv[3]))]}
    write_checkpoint({"state_dict": {"model.w": torch.zeros(int(sys.argv[2]))}, **rest}, Path(sys.argv[1]))
    """
)


@pytest.mark.parametrize(("weights", "state"), [(200_000, 1), (1, 200_000)], ids=["safetensors", "torch.save"])
def test_a_real_limit_while_the_libraries_write(tmp_path, weights, state):
    """Safetensors (Rust) and torch's zip writer (C++) meet the full disk in their own code."""
    target = tmp_path / "step-00000001.ckpt"
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(target), str(weights), str(state)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "lit_gpt.errors.UserError: no space to write" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_removing_a_link_leaves_what_it_names(tmp_path):
    (tmp_path / "moved").mkdir()
    (tmp_path / "step.ckpt").symlink_to(tmp_path / "moved")
    (tmp_path / "dangling.ckpt").symlink_to(tmp_path / "gone")
    remove_atomically(tmp_path / "step.ckpt")
    remove_atomically(tmp_path / "dangling.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
