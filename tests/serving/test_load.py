"""A minute and a half of 64 clients, a third of them leaving in mid-stream, some sending rubbish.

`LOAD_SECONDS=600 python -m pytest -m slow tests/serving/test_load.py -s` takes ten minutes and prints its counts.
"""

import asyncio
import http.client
import json
import os
import random
import time

import openai
import pytest
from running_server import metric_value
from served_process import ServedProcess

SECONDS = int(os.environ.get("LOAD_SECONDS", "90"))
CLIENTS = 64
BATCH, QUEUE = 8, 24
PROMPTS = ["def add", "return", "a + b", "", "def ", "(a, b):", "b):\n    return", "add(a"]
TOKENS = 40


@pytest.fixture(scope="module")
def server(bundle):
    words = ["--model", bundle, "--max_batch_size", BATCH, "--limits.queued", QUEUE, "--limits.body_bytes", 200_000]
    with ServedProcess(*words) as running:
        yield running


def metrics(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


class Counts:
    def __init__(self):
        self.right = self.left = self.busy = self.rubbish = 0
        self.wrong: list[str] = []


async def one_client(number, server, expected, until, counts):
    draw = random.Random(number)
    base = f"http://127.0.0.1:{server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="unused", max_retries=0, timeout=120) as client:
        while time.monotonic() < until:
            prompt = draw.choice(PROMPTS)
            ask = {"model": "tiny-bundle", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
            ask["extra_body"] = {"ignore_eos": True}
            kind = draw.random()
            try:
                if kind < 1 / 3:
                    stream = await client.completions.create(stream=True, **ask)
                    pieces = draw.randrange(1, 10)
                    async for _ in stream:
                        pieces -= 1
                        if pieces == 0:
                            break
                    await stream.close()
                    counts.left += 1
                elif kind < 0.4:
                    counts.rubbish += await rubbish(server, draw)
                elif kind < 0.7:
                    stream = await client.completions.create(stream=True, **ask)
                    text, reasons = "", []
                    async for chunk in stream:
                        text += chunk.choices[0].text
                        reasons += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
                    right = text == expected[prompt] and reasons == ["length"]
                    counts.right += right
                    counts.wrong += [] if right else [f"{prompt!r}: {text!r} {reasons}"]
                else:
                    answer = await client.completions.create(**ask)
                    right = answer.choices[0].text == expected[prompt] and answer.usage.completion_tokens == TOKENS
                    counts.right += right
                    counts.wrong += [] if right else [f"{prompt!r}: {answer.choices[0].text!r}"]
            except openai.RateLimitError as error:
                counts.busy += 1
                counts.wrong += [] if int(error.response.headers["retry-after"]) >= 1 else ["no Retry-After"]
                await asyncio.sleep(0.05 + 0.2 * draw.random())  # a client's manners, not a wait for anything


async def rubbish(server, draw):
    """Send what no client should; any answer must be an error."""
    body = draw.choice(
        [b"{", b"[" * 9000, b'{"prompt": "' + b"x" * 300_000 + b'"}', b"\xff" * 50, b'{"model": 3}', b""]
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read(100)
        assert answer.startswith((b"HTTP/1.1 4", b"")), answer
        return 1
    except ConnectionError:
        return 1
    finally:
        writer.close()


async def watch(server, until, seen):
    """Measure while the load is on."""
    while time.monotonic() < until:
        text = await asyncio.to_thread(metrics, server)
        seen.append(
            {
                "memory": server.memory_bytes(),
                "running": metric_value(text, "lit_gpt_running_sequences"),
                "waiting": metric_value(text, "lit_gpt_queue_sequences"),
                "in_flight": metric_value(text, "lit_gpt_in_flight_sequences"),
                "cache": metric_value(text, "lit_gpt_cache_used_tokens"),
                "room": metric_value(text, "lit_gpt_cache_limit_tokens"),
            }
        )
        await asyncio.sleep(1)


@pytest.mark.slow
def test_sixty_four_clients(server):
    base = f"http://127.0.0.1:{server.port}/v1"
    client = openai.OpenAI(base_url=base, api_key="unused", max_retries=0)
    ask = {"model": "tiny-bundle", "max_tokens": TOKENS, "temperature": 0, "extra_body": {"ignore_eos": True}}
    expected = {prompt: client.completions.create(prompt=prompt, **ask).choices[0].text for prompt in PROMPTS}
    counts, seen = Counts(), []

    async def everyone():
        until = time.monotonic() + SECONDS
        clients = [one_client(number, server, expected, until, counts) for number in range(CLIENTS)]
        await asyncio.gather(watch(server, until, seen), *clients)

    asyncio.run(everyone())
    print(vars(counts), seen[-1], f"{seen[5]['memory'] / 2**20:.0f} -> {seen[-1]['memory'] / 2**20:.0f} MiB")
    assert server.process.poll() is None
    assert not counts.wrong
    assert min(counts.right, counts.left, counts.rubbish) > 20
    assert counts.busy > 0  # 64 clients for 32 places: some are told to wait
    assert max(one["in_flight"] for one in seen) <= BATCH + QUEUE
    assert max(one["running"] for one in seen) <= BATCH
    assert max(one["waiting"] for one in seen) <= BATCH + QUEUE
    assert all(one["cache"] <= one["room"] for one in seen)
    first, last = (sorted(one["memory"] for one in part)[len(part) // 2] for part in (seen[10:25], seen[-15:]))
    assert last < first * 1.1 + (8 << 20), "memory grows"
    # Everything was given back.
    deadline = time.monotonic() + 20
    while metric_value(metrics(server), "lit_gpt_in_flight_sequences") and time.monotonic() < deadline:
        pass
    text = metrics(server)
    for name in ("in_flight_sequences", "running_sequences", "queue_sequences", "cache_used_tokens"):
        assert metric_value(text, f"lit_gpt_{name}") == 0, name
    answered = metric_value(text, "lit_gpt_requests_total", route="/v1/completions", code="200")
    assert answered >= counts.right + len(PROMPTS)
    assert metric_value(text, "lit_gpt_requests_total", code="500") == 0
    assert metric_value(text, "lit_gpt_rejected_total", reason="server_busy") == counts.busy
    assert client.completions.create(prompt="def add", **ask).choices[0].text == expected["def add"]


@pytest.mark.slow
def test_sigterm_under_load(server):
    """Whoever was let in gets a whole answer; whoever was not, an error: nobody hangs, nobody gets half."""
    base = f"http://127.0.0.1:{server.port}/v1"
    outcomes: list[str] = []

    async def ask(begun):
        async with openai.AsyncOpenAI(base_url=base, api_key="unused", max_retries=0, timeout=60) as client:
            try:
                stream = await client.completions.create(
                    model="tiny-bundle", prompt="def", max_tokens=TOKENS, stream=True, extra_body={"ignore_eos": True}
                )
                begun.set()
                reason = None
                async for chunk in stream:
                    reason = chunk.choices[0].finish_reason or reason
                outcomes.append("whole" if reason == "length" else "half")
            except openai.RateLimitError:
                outcomes.append("busy")
            except openai.APIConnectionError:
                outcomes.append("no connection")
            except openai.InternalServerError as error:
                outcomes.append(json.dumps(error.code))

    async def everyone():
        begun = asyncio.Event()
        asking = [asyncio.create_task(ask(begun)) for _ in range(48)]
        await begun.wait()
        server.terminate()
        await asyncio.gather(*asking)

    asyncio.run(everyone())
    assert server.process.wait(60) == 0
    assert "half" not in outcomes
    assert outcomes.count("whole") >= BATCH
    assert len(outcomes) == 48
    assert "Traceback" not in "".join(server.lines)
    print({kind: outcomes.count(kind) for kind in set(outcomes)})
