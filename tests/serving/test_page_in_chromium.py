"""A person's path through the page in headless Chromium: type, stream, copy, stop, again, edit, settings, dark, phone.

Needs `chromium`, `node`, and a folder with `npm i playwright-core` in it, named by PLAYWRIGHT_FOLDER.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PATH = Path(__file__).with_name("page_path.mjs")
REPLY = """It has **strong** words.

## A heading

1. one
2. two

```python
def add(a, b):
    return a + b
```

| a | b |
|---|---|
| 1 | 2 |

<script>window.attacked = true</script> <img src=x onerror="window.attacked = true">
[good](https://example.org/a_(b)) [bad](javascript:alert(1)) ![picture](https://example.org/p.png)
"""


def reply(prompt, params):
    last = prompt.rsplit("<|im_start|>user", 1)[1]
    return None if "forever" in last else "Fine." if "short" in last else REPLY


@pytest.mark.slow
def test_a_persons_path(serve, tmp_path):
    folder, chromium = os.environ.get("PLAYWRIGHT_FOLDER"), shutil.which("chromium") or shutil.which("google-chrome")
    if not folder or not chromium or not shutil.which("node"):
        pytest.skip("needs chromium, node and PLAYWRIGHT_FOLDER (a folder with `npm i playwright-core` in it)")
    script = Path(folder) / "page_path.mjs"  # beside node_modules, where node looks
    shutil.copyfile(PATH, script)
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    with serve(reply) as server:
        server.engine.pace_seconds = 0.01
        done = subprocess.run(
            ["node", str(script), f"http://127.0.0.1:{server.port}", chromium, str(pictures)],
            capture_output=True,
            text=True,
            timeout=180,
            cwd=folder,
        )
    script.unlink()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "failure" not in seen, seen
    assert seen["complaints"] == []
    assert seen["outside"] == []
    assert seen["focused"] == "input"
    assert seen["typed"] == "Show me \nMarkdown"
    assert seen["streaming"] == 1
    shown = seen["markdown"]
    assert (shown["heading"], shown["strong"], shown["items"], shown["cells"]) == ("A heading", "strong", 2, 2)
    assert shown["code"] == "def add(a, b):\n    return a + b"
    assert shown["links"] == ["https://example.org/a_(b)", "https://example.org/p.png"]
    assert shown["scripts"] == 0
    assert "<script>window.attacked = true</script>" in shown["text"]
    assert not seen["attacked"]
    assert seen["copied"] == shown["code"]
    assert seen["stopped"].endswith("stopped")
    assert "1 / 2" in seen["versions"]
    assert seen["turns"] == ["Show me \nMarkdown", "say something short"]
    assert seen["request"]["messages"][0] == {"role": "system", "content": "Answer in rhyme."}
    assert (seen["request"]["max_tokens"], seen["request"]["temperature"]) == (50, 0.3)
    assert [turn["role"] for turn in seen["request"]["messages"][1:]] == ["user", "assistant"] * 2 + ["user"]
    red, green, blue = (int(part) for part in seen["dark"].removeprefix("rgb(").removesuffix(")").split(","))
    assert max(red, green, blue) < 60
    assert seen["thought"][:3] == [False, "Yes.", True]
    assert seen["thought"][3].startswith("Thoughts")
    assert seen["kept"] == 6
    exported = (pictures / "exported.markdown").read_text()
    assert exported.startswith("# Show me Markdown")
    assert REPLY.strip() in exported
    assert json.loads((pictures / "exported.json").read_text())["messages"][1]["role"] == "user"
    assert seen["left"] == 0
    assert seen["width"] == 390
    assert seen["phoneEmpty"] == 0
