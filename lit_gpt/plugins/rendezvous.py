"""`TorchrunEnvironment`: processes that `torchrun` starts again find one another, and not those that have ended.

The agent of torchrun keeps a key-value store, in which the processes of a run exchange the addresses of their sockets.
It keeps it over restarts, with the addresses of the processes that have ended, so that a process that is started again
waits for one that is gone, or ends with "Connection refused" (torch 2.13: `rendezvous.py` expects a new store for each
start, and neither `StaticTCPRendezvous` nor `DynamicRendezvousHandler` makes one; pytorch/pytorch#135712). So here
process 0 opens a new store at every start, and only its address goes through the agent's.

That needs agents that agree about the agent's store, which those of one machine do, or of machines that are always the
same. If machines come and go, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun: then it opens new stores itself.
"""

import os
import time
import uuid

import torch.distributed as dist
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.fabric.plugins.environments import TorchElasticEnvironment

SHARED = "TORCHELASTIC_USE_AGENT_STORE"
"""Whether the address in the environment is that of the agent's store, as torchrun tells its processes."""


class TorchrunEnvironment(TorchElasticEnvironment):
    """Lightning's environment for `torchrun`, with a new store at every start; `lit_gpt.Trainer` chooses it itself."""

    def __init__(self) -> None:
        super().__init__()
        self._server: dist.TCPStore | None = None

    @property
    def main_port(self) -> int:
        """Port of the store in which the processes meet; all of them ask for it, before the process group exists."""
        if os.environ.get(SHARED) == "True":
            port = self._meet(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
            os.environ |= {"MASTER_PORT": str(port), SHARED: "False"}
        return super().main_port

    def _meet(self, rank: int, world_size: int) -> int:
        """Return the port of a new store on process 0.

        The agent's store may contain whatever earlier starts have left. So each process asks under its rank with a
        number that was never used before, and waits for the answer to this number. Process 0 goes on answering until
        everyone has arrived in the new store, because the first question that it reads may be an old one.
        """
        host = self.main_address
        agent = dist.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, timeout=default_pg_timeout)
        questions = dist.PrefixStore("lit_gpt", agent)
        if rank > 0:
            number = uuid.uuid4().hex
            questions.set(str(rank), number)
            port = int(questions.get(number))
            dist.TCPStore(host, port, is_master=False, timeout=default_pg_timeout).set(f"arrived/{rank}", "")
            return port
        # Kept: torch's own store on this port then is this one (`multi_tenant`).
        server = dist.TCPStore(host, 0, is_master=True, multi_tenant=True, wait_for_workers=False)
        self._server = server
        others = range(1, world_size)
        answered = set()
        end = time.monotonic() + default_pg_timeout.total_seconds()
        while others and not server.check([f"arrived/{other}" for other in others]):
            for other in others:
                if questions.check([str(other)]) and (number := questions.get(str(other)).decode()) not in answered:
                    questions.set(number, str(server.port))
                    answered.add(number)
            if time.monotonic() > end:
                raise TimeoutError(f"only some of {world_size} processes have started within {default_pg_timeout}")
            time.sleep(0.01)
        return server.port
