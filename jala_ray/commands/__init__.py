"""What users call: `jala COMMAND ...`, one module per command, found by its file.

A module of this package that has a function `run` is a command; `my_command.py` is `jala my-command`. A file that is added is a
command that is added, and other modules here (`shell.py`, helpers) are none. A command has:

- a docstring, whose first line is its line in `jala --help`; it is read without an import,
- `Arguments`, a frozen dataclass, read by tyro: every field has a docstring with its unit, tyro adds the default. `Positional` marks
  what needs no key. The dataclass's docstring stands at the top of `jala COMMAND --help`. A field `storage:
  FlagConversionOff[StorageOptions]` gives the `--storage.` keys, which go into the environment before `run`,
- `run(arguments: Arguments) -> int`, the exit status. `JalaError` becomes one line and status 2, Ctrl-C one line and 130,
- where tyro alone won't do (presets, adapters), `parse(words: Sequence[str], prog: str) -> Arguments`.

At the top it imports nothing heavy: config, presets, parsing, storage, types. torch, ray, transformers and all that needs them are
imported in `run`, so that help and errors come at once.
"""
