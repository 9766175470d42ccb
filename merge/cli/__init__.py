"""The command line: parse, call the API, print. Anything heavy is imported by the command that needs it."""

from __future__ import annotations

import click

from merge_models.merge.cli.demo import demo
from merge_models.merge.cli.eval import eval_command
from merge_models.merge.cli.failures import Group
from merge_models.merge.cli.inspect import inspect_command
from merge_models.merge.cli.merge import merge
from merge_models.merge.cli.methods import methods
from merge_models.merge.cli.plan import plan
from merge_models.merge.cli.repair import repair_command
from merge_models.merge.cli.reproduce import reproduce
from merge_models.merge.cli.run import run
from merge_models.merge.cli.verify import verify


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
