"""The command line: parse, call the API, print. Anything heavy is imported by the command that needs it."""

from __future__ import annotations

import click

from merge_models.merge.cli.checking import reproduce, verify
from merge_models.merge.cli.demonstration import demo
from merge_models.merge.cli.evaluating import eval_command
from merge_models.merge.cli.failures import Group
from merge_models.merge.cli.inspecting import inspect_command
from merge_models.merge.cli.listing import methods
from merge_models.merge.cli.merging import merge, run
from merge_models.merge.cli.planning import plan
from merge_models.merge.cli.repairing import repair_command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="merge-models")
def main() -> None:
    """Merge neural-network checkpoints on the geometry that they live in.

    \b
    Example: merge-models merge ./math ./code -m linear -o ./merged
    """


for _command in (
    demo,
    eval_command,
    inspect_command,
    merge,
    methods,
    plan,
    repair_command,
    reproduce,
    run,
    verify,
):
    main.add_command(_command)
