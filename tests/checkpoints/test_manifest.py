"""A manifest finds what is missing, cut off or changed, and names it."""

import hashlib
import json

import pytest

from lit_gpt.checkpoints.provenance import MANIFEST, verify, verify_sizes, write_manifest
from lit_gpt.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "deep" / ".hidden").write_bytes(b"x")
    write_manifest(tmp_path)
    return tmp_path


def test_a_manifest_holds_size_and_sha256_of_every_file(folder):
    files = json.loads((folder / MANIFEST).read_text())["files"]
    content = bytes(range(256)) * 40
    assert files["weights.bin"] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert set(files) == {"weights.bin", "deep/.hidden"}
    verify(folder)


def test_a_missing_file_is_named(folder):
    (folder / "weights.bin").unlink()
    with pytest.raises(UserError, match=r"weights\.bin"):
        verify(folder)


def test_a_file_that_is_cut_off_is_named_with_both_sizes(folder):
    (folder / "weights.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"weights\.bin.*\b5\b.*10240"):
        verify_sizes(folder)


@pytest.mark.parametrize("name", ["weights.bin", "deep/.hidden"])
def test_one_flipped_bit_is_found(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    verify_sizes(folder)  # the sizes are right
    with pytest.raises(UserError, match="SHA-256"):
        verify(folder)


def test_only_the_named_files_are_read(folder):
    (folder / "weights.bin").write_bytes(b"short")
    verify(folder, only=["deep/.hidden"])
    with pytest.raises(UserError, match="manifest"):
        verify(folder, only=["other.bin"])


def test_a_folder_without_manifest_was_never_finished(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"manifest\.json"):
        verify(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other", "files": {}}', '{"files": 3}', "\x00\x01", "{"])
def test_a_damaged_manifest_is_named(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        verify(folder)


def test_every_single_bit_of_the_manifest_is_harmless_or_refused(folder):
    good = (folder / MANIFEST).read_bytes()
    files = json.loads(good)["files"]
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 4
        (folder / MANIFEST).write_bytes(bad)
        try:
            manifest = verify(folder)
        except UserError:
            continue
        assert manifest["files"] == files
