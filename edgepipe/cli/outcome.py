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


def show_outcome(
    results: Sequence[CompressResult],
    *,
    junit: str | None,
    strict: bool,
    as_json: bool,
    quiet: bool,
    bundles: bool,
    page: str | None = None,
    verbose: bool = False,
) -> int:
    """Print the results and give the exit code: the lowest that is not 0. `bundles`: each result has a bundle and a report
    of its own; `page`: write one for all there."""
    manifests = [result.manifest for result in results]
    code = min((result.exit_code for result in results if result.exit_code), default=0)
    if junit:
        write_junit(Path(junit), manifests, strict=strict)
    if page:
        write_page(Path(page), manifests, [result.measurements for result in results])
    try:
        if as_json:
            click.echo(json.dumps(manifests[0] if len(manifests) == 1 else manifests, ensure_ascii=False))
        elif not quiet:
            _print(results, bundles=bundles, page=Path(page) if page else None)
            if verbose:
                _print_layers(manifests)
        sys.stdout.flush()
    except BrokenPipeError:  # who read us is gone; the verdict stands all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _print(results: Sequence[CompressResult], *, bundles: bool, page: Path | None) -> None:
    """One target as a table of every figure, several side by side."""
    if len(results) == 1:
        from edgepipe.report.terminal import print_result

        (only,) = results
        print_result(only.manifest, bundle=only.bundle, report=page or (only.report if bundles else None))
        return
    from edgepipe.report.terminal_matrix import print_matrix

    places = [(f"bundle for {result.profile}", result.bundle) for result in results] if bundles else [("bundle", results[0].bundle)]
    print_matrix([result.manifest for result in results], places=[*places, *([("report", page)] if page else [])])


def _print_layers(manifests: Sequence[Mapping[str, Any]]) -> None:
    from edgepipe.report.terminal_layers import print_layers

    for manifest in manifests:
        print_layers(manifest)


def write_page(path: Path, manifests: Sequence[Mapping[str, Any]], measurements: Sequence[Mapping[str, Any]]) -> None:
    from edgepipe.report.html import render_html
    from edgepipe.store import write_atomic

    write_atomic(path.absolute(), render_html(manifests, measurements).encode())


def write_junit(path: Path, manifests: Sequence[Mapping[str, Any]], *, strict: bool) -> None:
    from edgepipe.report.junit import junit_xml
    from edgepipe.store import write_atomic

    write_atomic(path.absolute(), junit_xml(manifests, strict=strict).encode())
