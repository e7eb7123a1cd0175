"""Run the tasks of a datatrove pipeline in this process, in local workers, on Slurm or on Ray.

All four use datatrove's executors: a finished task has a file `completions/<rank>` and is not run again. In addition,
the local executor detects workers killed by the system (datatrove's pool would wait for them forever) and terminates
its workers when it exits; the Slurm executor waits for its jobs; and all are silent, because there is a progress bar.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dill
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger

from lit_gpt.data.pipeline.options import ExecutorOptions
from lit_gpt.errors import UserError

POLL_SECONDS = 10.0


class InlineExecutor(LocalPipelineExecutor):
    """Runs tasks one after another in this process."""

    def run(self) -> None:
        """Run the unfinished tasks."""
        logger.disable("datatrove")
        for rank in self.get_incomplete_ranks():
            _copy(self)._run_for_rank(rank)


class WorkersExecutor(LocalPipelineExecutor):
    """Runs tasks in worker processes.

    The workers come from a fork server, so the calling script needs `if __name__ == "__main__":`.
    """

    def run(self) -> None:
        """Run the unfinished tasks; the first failing task ends all.

        Raises:
            UserError: if a worker was killed from outside, usually because the system ran out of memory.
        """
        ranks = self.get_incomplete_ranks()
        if not ranks:
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lit_gpt.data.pipeline.segments"])
        before = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            min(self.workers, len(ranks)), context, initializer=_begin_worker, initargs=(dill.dumps(self),)
        )
        try:
            with _deferred_signals():  # a partly started worker could not be terminated
                futures = [pool.submit(_run_in_worker, rank) for rank in ranks]
            for future in as_completed(futures):
                future.result()
            pool.shutdown()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed from outside, most likely because memory ran out; lower executor.workers "
                f"(it is {self.workers}) and start again: finished tasks are kept"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
                process.join()


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until the body is finished."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: came.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


_executor: Any = None


def _begin_worker(pickled: bytes) -> None:
    global _executor
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logger.disable("datatrove")
    _executor = dill.loads(pickled)


def _end_with_parent() -> None:
    """End this process when its parent has exited, even by SIGKILL; otherwise it would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(rank: int) -> None:
    _copy(_executor)._run_for_rank(rank, local_rank=rank)


def _copy(executor: PipelineExecutor) -> PipelineExecutor:
    """Return a copy with fresh blocks, so that a task does not see the state of an earlier one."""
    copy: PipelineExecutor = dill.loads(dill.dumps(executor))
    return copy


def run_pipeline(pipeline: list[Any], num_tasks: int, logs: Path, options: ExecutorOptions) -> None:
    """Run all unfinished tasks of a pipeline, and return when all are finished.

    Args:
        pipeline: datatrove steps.
        num_tasks: Number of tasks.
        logs: Folder for completions, logs and statistics.
        options: Executor settings.

    Raises:
        UserError: if tasks could not be run for external reasons.
    """
    logger.disable("datatrove")
    executor = _EXECUTORS[options.kind](pipeline, num_tasks, logs, options)
    executor.run()
    if options.kind == "slurm":
        _wait_for_slurm(executor)
    left = executor.get_incomplete_ranks(skip_completed=True)
    if left:
        raise UserError(
            f"{len(left)} of {num_tasks} tasks did not finish (the first: {left[0]}); their logs are in {logs}. "
            "Start again: finished tasks are kept"
        )


def _inline(pipeline: list[Any], num_tasks: int, logs: Path, options: ExecutorOptions) -> PipelineExecutor:
    return InlineExecutor(pipeline, tasks=num_tasks, workers=1, logging_dir=str(logs))


def _local(pipeline: list[Any], num_tasks: int, logs: Path, options: ExecutorOptions) -> PipelineExecutor:
    return WorkersExecutor(pipeline, tasks=num_tasks, workers=options.workers, logging_dir=str(logs))


def _slurm(pipeline: list[Any], num_tasks: int, logs: Path, options: ExecutorOptions) -> PipelineExecutor:
    from datatrove.executor.slurm import SlurmPipelineExecutor

    return SlurmPipelineExecutor(
        pipeline,
        tasks=num_tasks,
        time=str(options.time),
        partition=str(options.partition),
        workers=options.workers,
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.mem_per_cpu_gb,
        job_name=f"lit_gpt-{logs.name}",
        qos=options.qos or "",
        env_command=options.env_command,
        venv_path=options.venv_path,
        sbatch_args=options.sbatch_args,
        max_array_size=options.max_array_size,
        logging_dir=str(logs),
    )


def _ray(pipeline: list[Any], num_tasks: int, logs: Path, options: ExecutorOptions) -> PipelineExecutor:
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        ray.init(address=options.address, log_to_driver=False)
    return RayPipelineExecutor(
        pipeline,
        tasks=num_tasks,
        workers=options.workers,
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.mem_per_cpu_gb,
        logging_dir=str(logs),
    )


_EXECUTORS: dict[str, Callable[[list[Any], int, Path, ExecutorOptions], PipelineExecutor]] = {
    "inline": _inline,
    "local": _local,
    "slurm": _slurm,
    "ray": _ray,
}


def _wait_for_slurm(executor: Any) -> None:
    """Return when all tasks are complete or no job is left."""
    while executor.get_incomplete_ranks(skip_completed=True):
        jobs = subprocess.run(
            ["squeue", "--noheader", "--jobs", str(executor.job_id)], capture_output=True, text=True, check=False
        )
        if not jobs.stdout.strip():
            time.sleep(POLL_SECONDS)  # a shared file system may show the last completions with delay
            return
        time.sleep(POLL_SECONDS)


def check_executor(options: ExecutorOptions) -> None:
    """Raise a `UserError` if this machine cannot run the requested executor."""
    if options.kind == "ray":
        try:
            import ray  # noqa: F401
        except ImportError as error:
            missing = error.name or "ray"
            raise UserError(
                f"executor.kind is ray, and {missing} is not installed; pip install 'ray[default]', or use local"
            ) from error
    if options.kind == "slurm":
        if shutil.which("sbatch") is None:
            raise UserError(
                "executor.kind is slurm, and there is no sbatch here; start on a Slurm login node, or use local"
            )
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            raise UserError(
                "prepare was started inside a Slurm array task; start it on a login node; it submits its own jobs"
            )
        for name in ("partition", "time"):
            if getattr(options, name) is None:
                raise UserError(f'executor.kind is slurm and executor.{name} is not set; set it (time: "24:00:00")')
