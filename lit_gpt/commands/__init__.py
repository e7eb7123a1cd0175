"""Tool commands: one thin file each, which reads arguments, calls the rooms and prints.

A command's module imports nothing heavy at the top, so that `python -m lit_gpt <command> --help` starts at once.
"""

COMMANDS = {
    "generate": "lit_gpt.commands.generate:generate",
    "tokenizer train": "lit_gpt.commands.tokenizer:train",
    "import": "lit_gpt.commands.import_:import_",
    "export": "lit_gpt.commands.export:export",
}
"""Words on the command line → the function that carries them out; its signature and docstring are the help."""
