"""Lightning callbacks: everything in a run that the loss does not depend on.

Each file uses only the Trainer and the module, never a specific DataModule or objective; what it reads from them is
documented in its docstrings.
"""

from lit_gpt.callbacks.ema import ExponentialMovingAverage
from lit_gpt.callbacks.evaluation_suite import EvaluationSuite
from lit_gpt.callbacks.graceful_stop import GracefulStop
from lit_gpt.callbacks.hang_guard import HangGuard
from lit_gpt.callbacks.mixture_proportions import MixtureProportions
from lit_gpt.callbacks.nonfinite_guard import NonFiniteGuard
from lit_gpt.callbacks.pictures import AttentionPicture, ConfusionPicture
from lit_gpt.callbacks.plan_receipt import PlanReceipt
from lit_gpt.callbacks.predictions import ClassWriter, PredictionWriter
from lit_gpt.callbacks.preflight import Preflight
from lit_gpt.callbacks.progress_bar import TokenProgressBar
from lit_gpt.callbacks.quantization_aware import QuantizationAware
from lit_gpt.callbacks.replica_guard import ReplicaGuard
from lit_gpt.callbacks.run_checkpoint import RunCheckpoint
from lit_gpt.callbacks.run_folder import RunFolder
from lit_gpt.callbacks.samples import SampleAnswers, SampleText
from lit_gpt.callbacks.step_record import StepRecord
from lit_gpt.callbacks.throughput import ThroughputMonitor

__all__ = [
    "AttentionPicture",
    "ClassWriter",
    "ConfusionPicture",
    "EvaluationSuite",
    "ExponentialMovingAverage",
    "GracefulStop",
    "HangGuard",
    "MixtureProportions",
    "NonFiniteGuard",
    "PlanReceipt",
    "PredictionWriter",
    "Preflight",
    "QuantizationAware",
    "ReplicaGuard",
    "RunCheckpoint",
    "RunFolder",
    "SampleAnswers",
    "SampleText",
    "StepRecord",
    "ThroughputMonitor",
    "TokenProgressBar",
]
