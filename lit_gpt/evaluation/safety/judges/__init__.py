"""Judges of answers: rules, a trained model, a model behind an address, or anybody's own class or function."""

from lit_gpt.evaluation.safety.judges.base import Exchange, Judge, Judgement, Verdict
from lit_gpt.evaluation.safety.judges.build import JudgeSpec, build_judge
from lit_gpt.evaluation.safety.judges.endpoint import EndpointJudge
from lit_gpt.evaluation.safety.judges.model import FunctionJudge, RewardModelJudge
from lit_gpt.evaluation.safety.judges.rules import RuleJudge

__all__ = [
    "EndpointJudge",
    "Exchange",
    "FunctionJudge",
    "Judge",
    "JudgeSpec",
    "Judgement",
    "RewardModelJudge",
    "RuleJudge",
    "Verdict",
    "build_judge",
]
