"""The command line: parse, call the API, print. Anything heavy is imported by the command that needs it."""

from __future__ import annotations

import importlib

import click

from merge_models.merge.cli.failures import Group

COMMANDS = {
    "demo": "demo",
    "eval": "eval_command",
    "inspect": "inspect_command",
    "merge": "merge",
    "methods": "methods",
    "plan": "plan",
    "repair": "repair_command",
    "reproduce": "reproduce",
    "run": "run",
    "verify": "verify",
}
"""What holds each command, in the file of its name."""


class Commands(Group):
    """The commands, each loaded when it is asked for: a run does not wait for the options of the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns a command by its name, or None where there is none."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"{__name__}.{cmd_name}"), COMMANDS[cmd_name])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="merge-models")
def main() -> None:
    """Merge neural-network checkpoints on the geometry that they live in.

    \b
    Example: merge-models merge ./math ./code -m linear -o ./merged
    """
