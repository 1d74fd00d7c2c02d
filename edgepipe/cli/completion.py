"""`edgepipe completion bash|zsh|fish`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script: eval "$(edgepipe completion bash)" in ~/.bashrc, or save it where the shell looks."""
    from edgepipe.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "edgepipe", "_EDGEPIPE_COMPLETE").source())
