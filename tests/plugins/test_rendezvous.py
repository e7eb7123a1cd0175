"""Processes that torchrun starts again meet in a new store, whatever earlier ones have left in that of its agent."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from lit_gpt.plugins import TorchrunEnvironment
from lit_gpt.plugins.rendezvous import SHARED

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")


def test_every_start_has_a_store_of_its_own(monkeypatch):
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(agent.port))
    # Processes of an earlier start asked, and were killed before they were answered, or after.
    left = dist.PrefixStore("lit_gpt", agent)
    left.set("1", "a question")
    left.set("2", "another question")
    left.set("another question", "1")
    ports, kept = set(), []
    for world_size in (3, 3, 2):
        environments = [TorchrunEnvironment() for _ in range(world_size)]
        with ThreadPoolExecutor(world_size) as threads:
            found = list(threads.map(lambda e, r, n=world_size: e._meet(r, n), environments, range(world_size)))
        assert len(set(found)) == 1
        ports.add(found[0])
        kept += environments  # with their stores, so that no port comes again
        client = dist.TCPStore("127.0.0.1", found[0], is_master=False)
        assert client.check([f"arrived/{rank}" for rank in range(1, world_size)])
        assert not client.check([f"arrived/{world_size}"])
    assert len(ports) == 3


@pytest.mark.parametrize("shared", ["False", None])
def test_a_store_of_torchruns_own_is_left_alone(monkeypatch, shared):
    monkeypatch.delenv(SHARED, raising=False)
    if shared is not None:
        monkeypatch.setenv(SHARED, shared)
    monkeypatch.setenv("MASTER_PORT", "29999")
    assert TorchrunEnvironment().main_port == 29999
    assert os.environ["MASTER_PORT"] == "29999"


def test_the_port_is_asked_for_once(monkeypatch):
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    values = {SHARED: "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "RANK": "0"}
    for name, value in (values | {"WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    environment = TorchrunEnvironment()
    port = environment.main_port
    assert port not in (0, agent.port)
    assert (environment.main_port, os.environ[SHARED]) == (port, "False")
