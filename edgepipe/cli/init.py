"""`edgepipe init`: a commented project file, written by looking at the model folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from edgepipe.cli.options import json_option
from edgepipe.errors import ModelError, UsageError, reading

TASK_OF = {
    "SequenceClassification": "text-classification", "TokenClassification": "token-classification", "ImageClassification": "image-classification",
}  # fmt: skip


@click.command("init")
@click.argument("model")
@click.option("--out", default="edgepipe.toml", metavar="FILE", help="Where to write it.")
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@json_option
def command(model: str, out: str, force: bool, as_json: bool) -> None:
    """Write a commented edgepipe.toml for MODEL by looking at its folder and at the data files here."""
    from edgepipe.config import resolve_path
    from edgepipe.intake import find_source
    from edgepipe.store import write_atomic

    target = Path(out)
    if target.exists() and not force:
        raise UsageError("the file exists", where=out, fix="--force replaces it")
    here, base = Path.cwd(), target.absolute().parent
    named = resolve_path(model, here)
    if (Path(named) / "adapter_config.json").is_file():
        raise UsageError("that is an adapter folder", where=model, fix="name its base model; adapters beside it are found by themselves")
    with reading(ModelError):
        source = find_source(named)

    def written(path: Path) -> str:
        return Path(os.path.relpath(path, base)).as_posix()

    as_given = base == here or "://" in model or Path(model).expanduser().is_absolute()
    adapters = [written(path.parent) for path in sorted(here.glob("*/adapter_config.json"))]
    data = {role: written(here / name) for role, name in _data_files(here).items()}
    text = project_text(model if as_given else written(Path(named)), source, adapters, data)
    write_atomic(target.absolute(), text.encode())
    if as_json:
        click.echo(json.dumps({"file": str(target), "model": str(named), "adapters": adapters, "data": data}))
        return
    first = "look it over" if data else "name your samples in its [data]"
    click.echo(f"wrote {out}; {first}, then: edgepipe compress --profile host")


def _data_files(folder: Path) -> dict[str, str]:
    """Files whose name says their role: train.csv, test.jsonl, …; a lone data file serves all four."""
    suffixes = (".csv", ".tsv", ".jsonl", ".parquet")
    found = {path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix in suffixes}
    roles: dict[str, str] = {role: found[role] for role in ("train", "calibration", "dev", "test") if role in found}
    return roles or ({"file": next(iter(found.values()))} if len(found) == 1 else {})


def project_text(model: str, source: Any, adapters: list[str], data: dict[str, str]) -> str:
    from edgepipe.config import toml_value

    architecture = (source.config.get("architectures") or [""])[0]
    task = next((name for suffix, name in TASK_OF.items() if architecture.endswith(suffix)), "")
    if not task:
        task = "sentence-similarity" if (source.folder / "modules.json").is_file() else "text-classification" if adapters else "fidelity"
    label_line = (
        f"labels = {toml_value(source.labels)}"
        if source.labels
        else '# labels = ["negative", "positive"]   # in the order of the model\'s outputs'
    )
    lines = [
        "# edgepipe project file; every key: docs/configuration.md. Paths are relative to this file.",
        f"model = {toml_value(model)}",
        f"adapters = {toml_value(adapters)}   # LoRA adapters, merged in this order",
        '# profiles = ["rpi4"]        # devices to build for; --profile overrides',
        'out = "build"',
        "",
        "[task]",
        f'name = "{task}"   # what accuracy means; "fidelity" needs no labels',
        label_line,
        "",
        "[data]",
        *(f"{role} = {toml_value(name)}" for role, name in data.items()),
        *([] if data else ['# file = "samples.csv"       # split by a fixed seed into train, calibration, dev and test']),
        '# text = "text"              # column names',
        '# label = "label"',
        "# max_length = 128",
        "",
        "[budget]                     # a budget that does not hold fails the build",
        "max_accuracy_drop = 1.0      # points below the uncompressed model",
        "max_size_ratio = 0.3         # of the float32 model",
        "# max_latency_ms = 50",
        "",
        "[licences]                   # for the model card",
        '# model = "apache-2.0"',
        '# data = "mit"',
    ]
    return "\n".join(lines) + "\n"
