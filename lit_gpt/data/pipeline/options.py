"""Options of the recipe's `executor:` section."""

from dataclasses import dataclass
from typing import Any, Literal

from lit_gpt.errors import UserError


@dataclass(frozen=True)
class ExecutorOptions:
    """Where and how the passes run. The output does not depend on it.

    Args:
        kind: `inline` (this process), `local` (worker processes on this machine), `slurm` or `ray`.
        workers: Number of tasks that run at the same time; with slurm and ray -1 means no limit.
        partition: Slurm partition.
        time: Slurm time limit per task, in quotes: "24:00:00".
        cpus_per_task: CPU cores per task (slurm, ray).
        mem_per_cpu_gb: Memory per core in GB (slurm, ray).
        qos: Slurm quality of service.
        env_command: Shell line that makes lit_gpt available in a Slurm job, such as `source ~/venv/bin/activate`.
        venv_path: Alternative to `env_command`: path of a virtual environment's `bin/activate`.
        sbatch_args: Additional `#SBATCH` options: {account: my_project}.
        max_array_size: Maximum size of a job array on the Slurm cluster.
        address: Address of a Ray cluster ("auto", "ray://host:10001"); null starts one on this machine.

    Raises:
        UserError: for an invalid number of workers.
    """

    kind: Literal["inline", "local", "slurm", "ray"] = "inline"
    workers: int = 1
    partition: str | None = None
    time: str | None = None
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    qos: str | None = None
    env_command: str | None = None
    venv_path: str | None = None
    sbatch_args: dict[str, Any] | None = None
    max_array_size: int = 1000
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 and not (self.workers == -1 and self.kind in ("slurm", "ray")):
            raise UserError(f"executor.workers is {self.workers}; it must be at least 1")
        if self.kind == "inline" and self.workers != 1:
            raise UserError(
                f"executor.workers is {self.workers} and executor.kind is inline, which is one process; set kind: local"
            )
