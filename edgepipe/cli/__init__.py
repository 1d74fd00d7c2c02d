"""The command line: thin click commands that parse, call and print. Each stands in its own file, loaded when used."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from edgepipe.errors import EdgepipeError, InputError, Interrupted, ResourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Name → (file in this folder, one line of help). The help stands here so that `--help` imports none of them.
COMMANDS = {
    "compress": ("compress", "Compress a model for a device and prove the result there."),
    "data": ("data", "Look at data, deal it into splits, drop near-duplicates, search it."),
    "plan": ("plan", "Write the recipe for a model and a device, with a reason on every line."),
    "validate": ("validate", "Judge a bundle again, on its own device or others."),
    "inspect": ("inspect", "Show a model's parameters, bytes, operators and arithmetic."),
    "init": ("init", "Write a commented edgepipe.toml by looking at a model folder."),
    "report": ("report", "Show bundles' verdicts again, or several side by side on one page."),
    "diff": ("diff", "Compare two bundles or manifests; a regression fails."),
    "profiles": ("profiles", "List, show and check device profiles."),
    "devices": ("devices", "Set up and look at what devices are judged with: emulation, browser, boards."),
    "passes": ("passes", "List the passes, or show one with its options."),
    "cache": ("cache", "List what edgepipe keeps between runs, or bring it in bounds."),
    "completion": ("completion", "Print the shell completion script for bash, zsh or fish."),
}

UNREADABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EIO,
)  # of the user's files; what cannot be written is told where it is


class _ReaderGoneError(Exception):
    """Who read our output has closed it (`edgepipe … | head`); click would end the program with 1."""


class LazyGroup(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGoneError from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"edgepipe.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from edgepipe.errors import nearest

            raise click.UsageError(f'No such command "{args[0]}"; {nearest(args[0], COMMANDS)}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"edgepipe {version('edgepipe')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit.")
def cli() -> None:
    """Compress a trained model for one named device, and prove the result there.

    edgepipe compress --profile rpi4
    """


def main(args: Sequence[str] | None = None) -> None:
    """Entry point: runs the command and maps every error to its exit code (see edgepipe.errors)."""
    sys.exit(run(list(sys.argv[1:] if args is None else args)))


def run(args: list[str]) -> int:
    as_json = "--json" in args
    try:
        outcome: Any = cli.main(args, prog_name="edgepipe", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
        return _fail(UsageError(error.format_message(), where=where, fix=f"{where or 'edgepipe'} --help lists what there is"), as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail(Interrupted("interrupted; what was finished is kept, the next run goes on from there"), as_json)
    except _ReaderGoneError:  # nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # a task's or profile's own code ended the program
        return stop.code if isinstance(stop.code, int) else 1
    except MemoryError:
        return _fail(ResourceError("memory ran out", fix="use a machine with more memory, or a smaller model"), as_json)
    except EdgepipeError as error:
        return _fail(error, as_json)
    except Exception as error:
        if "--verbose" in args:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in UNREADABLE and error.filename:
            return _fail(
                InputError(f"cannot be read: {error.strerror}", where=str(error.filename), fix="check the path and its permissions"),
                as_json,
            )
        return _fail(
            EdgepipeError(f"a bug in edgepipe: {type(error).__name__}: {error}", fix="run again with --verbose and report the traceback"),
            as_json,
        )


def _fail(error: EdgepipeError, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(error.to_json(), ensure_ascii=False))
    else:
        click.echo(f"error: {error}", err=True)
    return error.exit_code
