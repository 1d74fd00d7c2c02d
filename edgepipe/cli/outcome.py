"""What `compress` and `validate` end with: JUnit, JSON or tables, and the exit code."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.build import CompressResult


def show_outcome(results: Sequence[CompressResult], *, junit: str | None, strict: bool, as_json: bool, quiet: bool, report: bool) -> int:
    """Print the results (`report`: with the path of the page that was written) and give the exit code: the lowest that is not 0."""
    manifests = [result.manifest for result in results]
    code = min((result.exit_code for result in results if result.exit_code), default=0)
    if junit:
        write_junit(Path(junit), manifests, strict=strict)
    try:
        if as_json:
            click.echo(json.dumps(manifests[0] if len(manifests) == 1 else manifests, ensure_ascii=False))
        elif not quiet:
            from edgepipe.report.terminal import print_result

            for result in results:
                print_result(result.manifest, bundle=result.bundle, report=result.report if report else None)
        sys.stdout.flush()
    except BrokenPipeError:  # who read us is gone; the verdict stands all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def write_junit(path: Path, manifests: Sequence[Mapping[str, Any]], *, strict: bool) -> None:
    from edgepipe.report.junit import junit_xml
    from edgepipe.store import write_atomic

    write_atomic(path.absolute(), junit_xml(manifests, strict=strict).encode())
