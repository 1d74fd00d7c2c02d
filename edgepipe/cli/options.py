"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

TASKS = "text-classification, token-classification, sentence-similarity, image-classification, fidelity"


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")
project_option = click.option("--project", metavar="FILE", help="Project file (default: edgepipe.toml or [tool.edgepipe] here or above).")
strict_option = click.option("--strict", is_flag=True, help="Exit 16 when an axis is unproven.")
junit_option = click.option("--junit", metavar="FILE", help="Write JUnit XML too.")
output_options = _all(
    click.option("--quiet", is_flag=True, help="No progress and no tables."),
    click.option("--verbose", is_flag=True, help="Progress in full, and tracebacks of bugs."),
)


class _Samples(click.ParamType):  # type: ignore[type-arg]
    """A count, or `all`, which is None."""

    name = "samples"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "all" or value is None:
            return None
        if isinstance(value, int) or (str(value).isdecimal() and int(value) > 0):
            return int(value)
        return self.fail(f'"{value}" is neither a count nor "all"', param, ctx)


target_options = _all(
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="[PROFILE=]ADDRESS",
        help="Where the device is: USER@HOST[:PORT] for ssh, a serial number for adb.",
    ),
    click.option(
        "--target-samples",
        type=_Samples(),
        default="200",
        metavar="N|all",
        help="Random test samples that an emulated device runs itself (default: 200, and the 50 nearest to a tie).",
    ),
)
build_options = _all(
    click.argument("model", required=False),
    click.option("--profile", "profiles", multiple=True, metavar="NAME|FILE", help="The device; several give OUT/NAME each."),
    click.option("--adapter", "adapters", multiple=True, metavar="DIR", help="LoRA adapter to merge; several are merged in order."),
    click.option("--task", metavar="NAME", help=f"What accuracy means: {TASKS}."),
    click.option("--data", metavar="FILE", help="One file of samples, split by a fixed seed into the four roles."),
    click.option("--train", metavar="FILE", help="Samples for recovery."),
    click.option("--unlabelled", metavar="FILE", help="Samples without labels, which recovery learns from too."),
    click.option("--calibration", metavar="FILE", help="Samples for importance and quantization statistics."),
    click.option("--dev", metavar="FILE", help="Samples for choices."),
    click.option("--test", metavar="FILE", help="Samples that judge the result; read once."),
    click.option("--budget", multiple=True, metavar="KEY=VALUE", help="A limit, e.g. max_size_bytes=20MB, max_accuracy_drop=0.5."),
    click.option("--recipe", metavar="FILE", help="Run this recipe instead of the planner's."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="PASS.OPTION=VALUE",
        help="An option of a pass, e.g. quantize-dynamic.per_channel=false.",
    ),
    click.option(
        "--tune/--no-tune", default=True, help="Choose by measurement how each layer is quantized (default), or quantize as planned."
    ),
    click.option("--model-factory", metavar="FILE.py:FUNCTION", help="Builds the torch module of an architecture of your own."),
    click.option("--teacher", metavar="DIR", help="Another model that recovery learns from (default: the uncompressed one)."),
    click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Python file that registers passes."),
    project_option,
)


def request_of(arguments: dict[str, Any], **more: Any) -> Any:
    """The build request that `build_options` and the project file make."""
    from edgepipe.project import make_request

    splits = {key: arguments.pop(key) for key in ("train", "calibration", "dev", "test", "unlabelled")}
    return make_request(data={"file": arguments.pop("data"), **splits}, **arguments, **more)
