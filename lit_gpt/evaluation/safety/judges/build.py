"""From what stands in a YAML to a judge."""

import inspect
from collections.abc import Mapping
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.evaluation.safety.judges.base import Judge
from lit_gpt.evaluation.safety.judges.endpoint import EndpointJudge
from lit_gpt.evaluation.safety.judges.model import FunctionJudge, RewardModelJudge
from lit_gpt.evaluation.safety.judges.rules import RuleJudge
from lit_gpt.instantiate import construct, import_object
from lit_gpt.suggest import nearest

OURS = {judge.__name__: judge for judge in (RuleJudge, RewardModelJudge, EndpointJudge)}
JudgeSpec = Judge | dict[str, Any] | str | None
"""A judge; or its class by name, with `init_args` where it has some; or None for the rules."""


def build_judge(spec: JudgeSpec) -> Judge:
    """Make a judge.

    Args:
        spec: A judge, `RewardModelJudge` or another short name, `my_package.MyJudge`, or {class_path, init_args}. A
            class of another project that is no `Judge`, or a function, is called with prompt and answer
            (`FunctionJudge`).

    Raises:
        UserError: There is no such class, or it does not take the arguments.
    """
    if spec is None:
        return RuleJudge()
    if isinstance(spec, Judge):
        return spec
    described: Any = {"class_path": spec} if isinstance(spec, str) else spec
    if hasattr(described, "as_dict"):  # jsonargparse's Namespace
        described = described.as_dict()
    if not isinstance(described, Mapping) or not isinstance(described.get("class_path"), str):
        raise UserError(f"judge is {spec!r}; give class_path, and init_args where it takes some")
    path, arguments = described["class_path"], dict(described.get("init_args") or {})
    if "." not in path and path not in OURS:
        raise UserError(
            f"there is no judge {path!r}; nearest: {nearest(path, OURS)}; another's is package.module.{path}"
        )
    target = OURS.get(path) or import_object(path, "judge", extra=None)
    threshold = {}
    if not isinstance(target, type):
        unknown = set(arguments) - {"threshold"}
        if unknown or not callable(target):
            raise UserError(
                f"judge {path} is a function; its init_args can be threshold, not {', '.join(sorted(unknown))}"
            )
        return FunctionJudge(target, **arguments, name=path)
    if not issubclass(target, Judge) and "threshold" in arguments:
        threshold = {"threshold": arguments.pop("threshold")}
    try:
        inspect.signature(target)
    except ValueError as error:
        raise UserError(f"judge {path} does not say what it takes; name a class of Python source") from error
    made = construct(target, arguments, f"judge {path}")
    if isinstance(made, Judge):
        return made
    if not callable(made):
        raise UserError(f"judge {path} is neither a Judge nor callable with (prompt, answer); give it one of them")
    return FunctionJudge(made, **threshold, name=path)
