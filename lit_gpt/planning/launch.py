"""Files that start a planned run on many machines: a SLURM job, a torchrun script, a PyTorchJob, a SkyPilot task.

Each is a template in `launch_templates/`, filled with the numbers of a plan. Whatever starts it, the run is the same
command with `--ckpt_path auto`, so that starting it again resumes from its newest complete checkpoint.
"""

import re
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_gpt.checks import check_at_least, check_one_of
from lit_gpt.errors import UserError
from lit_gpt.parallel import Layout
from lit_gpt.planning.forecast import GPUS_PER_NODE

LAUNCHERS = {
    "slurm": "slurm.sh",
    "torchrun": "torchrun.sh",
    "kubernetes": "kubernetes.yaml",
    "skypilot": "skypilot.yaml",
}
"""Names of launchers, and the template of each."""
SKYPILOT_NAMES = {"a100-40gb": "A100", "rtx-4090": "RTX4090", "rtx-3090": "RTX3090", "h100-pcie": "H100"}
"""SkyPilot's names of accelerators that are not the capitals of ours."""
MARGIN = 1.5
"""Time limit of a job over the upper end of its forecast: data, validation, checkpoints and starts come on top."""


def launch_file(
    plan: Mapping[str, Any], config: str, launcher: str, per_node: int | None = None, file: str = ""
) -> str:
    """Return the content of the file that starts a run.

    Args:
        plan: The plan, as `read_plan` returns it.
        config: Path of the run's YAML, from the folder in which the run is started.
        launcher: A key of `LAUNCHERS`.
        per_node: Number of devices of a machine; None: 8, or all if there are fewer.
        file: Name under which the file will be saved, for the comment that says how to start it.

    Raises:
        UserError: There is no such launcher, or the devices do not fill machines of this size.
    """
    check_one_of("to", launcher, tuple(LAUNCHERS))
    check_at_least("per_node", per_node, 1)
    run, device = plan["run"], plan["device"]
    devices = Layout(**run["layout"]).world_size
    size = min(devices, GPUS_PER_NODE) if per_node is None else per_node
    if devices % size:
        raise UserError(f"per_node {size} does not divide the plan's {devices} devices; set --per_node to a divisor")
    hours = (plan.get("hours") or {}).get("high")
    return (
        _environment()
        .get_template(LAUNCHERS[launcher])
        .render(
            run=" ".join(run["name"].split()),
            # Names in Kubernetes and SkyPilot: lower-case letters, digits and hyphens (RFC 1123).
            label=re.sub("[^a-z0-9]+", "-", run["name"].lower()).strip("-")[:50] or "run",
            config=config,
            nodes=devices // size,
            per_node=size,
            device=device["name"],
            is_gpu=device["kind"] == "cuda",
            accelerator=SKYPILOT_NAMES.get(device["name"], device["name"].upper()),
            minutes=None if hours is None else max(10, round(60 * MARGIN * hours)),
            disk_gb=max(10, round(1.2 * plan.get("disk_bytes", 0) / 1e9)),
            file=file or LAUNCHERS[launcher],
        )
    )


@cache
def _environment() -> Environment:
    loader = PackageLoader("lit_gpt.planning", "launch_templates")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quoted"] = shlex.quote
    return environment
