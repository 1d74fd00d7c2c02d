"""`edgepipe compress`: build, validate, hand over."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from edgepipe.cli.console import progress
from edgepipe.cli.options import build_options, json_option, junit_option, output_options, request_of, strict_option, target_options
from edgepipe.cli.outcome import show_outcome


@click.command("compress")
@build_options
@click.option("--out", metavar="DIR", help="Where the bundle goes (default: build, or the project file's).")
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@target_options
@strict_option
@click.option("--archive", is_flag=True, help="Write OUT.tar.gz too, reproducible.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, show the plan, run nothing.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Training ends then, with the best it has; marked so.",
)
@click.option("--yes", is_flag=True, help="Ask nothing. In CI, and where nobody can answer, nothing is asked anyway.")
@junit_option
@json_option
@output_options
def command(
    out: str | None,
    force: bool,
    strict: bool,
    archive: bool,
    dry_run: bool,
    time_limit: float | None,
    yes: bool,
    junit: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **arguments: Any,
) -> int:
    """Compress MODEL for a device and prove the result there.

    MODEL is a model folder, an ONNX file or hf://org/name@revision; what is not given comes from edgepipe.toml.
    Exit code 0: no budget broke (some axes may be unproven; --strict refuses that). 10-15: the first axis that broke.
    """
    from edgepipe.build import compress

    request = request_of(arguments, out=out, force=force or dry_run, strict=strict, archive=archive, time_limit=time_limit)
    if dry_run:
        from edgepipe.cli.plan import show_plans

        return show_plans(request, whole=True, as_json=as_json, quiet=quiet)
    with progress(quiet=quiet or as_json, verbose=verbose) as display:
        results = compress(request, display, None if yes or quiet or as_json else _asked)
    return show_outcome(results, junit=junit, strict=strict, as_json=as_json, quiet=quiet, bundles=True, verbose=verbose)


def _asked(minutes: float) -> bool:
    """Whether a person who can answer wants to train for so long; nobody is asked in CI."""
    if os.environ.get("CI") or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    return click.confirm(f"Training takes up to about {minutes:.0f} min on this machine. Go on?", default=True, err=True)
