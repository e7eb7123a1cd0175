"""Tool commands, one thin module each: read the arguments, call the packages, print the result.

A command's module imports nothing heavy at the top, so that `python -m lit_gpt <command> --help` starts immediately.
"""

COMMANDS = {
    "prepare": "lit_gpt.commands.prepare:prepare",
    "generate": "lit_gpt.commands.generate:generate",
    "chat": "lit_gpt.commands.chat:chat",
    "serve": "lit_gpt.commands.serve:serve",
    "tokenizer train": "lit_gpt.commands.tokenizer:train",
    "tokenizer measure": "lit_gpt.commands.tokenizer:measure",
    "inspect": "lit_gpt.commands.inspect:inspect",
    "import": "lit_gpt.commands.import_:import_",
    "quantize": "lit_gpt.commands.quantize:quantize",
    "export": "lit_gpt.commands.export:export",
    "evaluate": "lit_gpt.commands.evaluate:evaluate",
    "score": "lit_gpt.commands.score:score",
    "plan": "lit_gpt.commands.plan:plan",
    "plan-init": "lit_gpt.commands.plan:init",
    "plan-score": "lit_gpt.commands.plan:score",
    "plan-budget": "lit_gpt.commands.plan:budget",
    "plan-ladder": "lit_gpt.commands.plan:ladder",
    "plan-launch": "lit_gpt.commands.plan:launch",
    "plan-fit-law": "lit_gpt.commands.plan:fit_law",
    "doctor": "lit_gpt.commands.doctor:doctor",
}
"""Maps a command's name to the function that implements it; its signature and docstring become `--help`."""
