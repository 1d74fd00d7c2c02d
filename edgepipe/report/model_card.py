"""model_card.md: what a model is, where it came from, for which device, how good it is there, and its limits.

After Mitchell et al., "Model Cards for Model Reporting" (2019), with the Hugging Face hub's front matter.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from edgepipe.report.numbers import change_text, conditions_text, interval_text, level, limit_text, named, number, with_unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NOT_STATED = "not stated"
HUB_TASKS = ("text-classification", "token-classification", "sentence-similarity", "image-classification", "object-detection")
VERDICTS = {
    "held": "It keeps every budget.",
    "broken": "**It breaks a budget; do not ship it.**",
    "unproven": "No budget is broken, but not all are proven on the device.",
}
LICENCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
MARKDOWN = re.compile(r"([\\|`*<>\[\]])")


def render_model_card(manifest: Mapping[str, Any]) -> str:
    """The card as Markdown with YAML front matter; every figure is one of the manifest's."""
    source = manifest.get("source") or {}
    blocks: list[str] = [
        _front_matter(manifest, source),
        f"# {escape(_name(source))} for {escape(_device(manifest))}",
        _summary(manifest, source),
        "## Intended device", _intended(manifest),
        "## Made from", _made_from(source),
        "## What was done", _passes(manifest),
        "## Evaluation", _evaluation(manifest, source),
        "## Limits", _bullets(_limits(manifest)),
        "## How to run", _how_to_run(manifest),
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: object) -> str:
    """Text that stays text in Markdown, in a table cell too: one line, no markup."""
    return MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table of cells that are escaped already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _front_matter(manifest: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    task = (manifest.get("program") or {}).get("task") or source.get("task")
    lines = ["library_name: onnxruntime"]
    if licence := _licence(source):
        lines.insert(0, f"license: {json.dumps(licence.lower())}")
    if task in HUB_TASKS:
        lines.append(f"pipeline_tag: {task}")
    formats = dict.fromkeys(component["format"] for component in manifest.get("components") or ())
    tags = ["edgepipe", *formats, manifest["profile"]]
    return "\n".join(["---", *lines, "tags:", *(f"- {json.dumps(tag, ensure_ascii=False)}" for tag in tags), "---"])


def _licence(source: Mapping[str, Any]) -> str | None:
    """The one licence of all that the weights came from; None when one is not stated, they differ, or it is no identifier."""
    licences = source.get("licences") or {}
    parts = {licences.get("model"), *([licences.get("adapter")] if source.get("adapters") else [])}
    licence = parts.pop() if len(parts) == 1 else None
    return licence if licence and LICENCE_ID.fullmatch(licence) else None


def _name(source: Mapping[str, Any]) -> str:
    return " + ".join([source.get("model") or "model", *(source.get("adapters") or ())])


def _device(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("profile_title") or manifest["profile"])


def _summary(manifest: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    model, baseline = manifest.get("model") or {}, manifest.get("baseline") or {}
    text = f"{escape(_name(source))}, compressed by edgepipe {manifest.get('edgepipe', '')}"
    if model.get("size_bytes") and baseline.get("size_bytes"):
        text += f" from {with_unit(baseline['size_bytes'], 'bytes')} to {with_unit(model['size_bytes'], 'bytes')}"
    return f"{text}. {VERDICTS.get(manifest.get('verdict') or '', 'It was given no verdict.')}"


def _intended(manifest: Mapping[str, Any]) -> str:
    program = manifest.get("program") or {}
    lines = [f"{escape(_device(manifest))} (profile `{manifest['profile']}`), for the task {escape(program.get('task') or NOT_STATED)}."]
    if labels := program.get("labels"):
        shown = ", ".join(escape(label) for label in labels[:20])
        lines.append(f"It answers with one of {len(labels)} labels: {shown}{', …' if len(labels) > 20 else ''}.")
    return " ".join(lines)


def _made_from(source: Mapping[str, Any]) -> str:
    licences = source.get("licences") or {}
    rows = [("Base model", source.get("model") or NOT_STATED, licences.get("model"))]
    rows += [("Adapter", adapter, licences.get("adapter")) for adapter in source.get("adapters") or ()]
    splits = ", ".join(f"{split} {number(count, 0)}" for split, count in (source.get("rows") or {}).items())
    rows.append(("Data", f"samples: {splits}" if splits else NOT_STATED, licences.get("data")))
    return table(("Part", "Name", "Licence"), [(part, escape(name), escape(licence or NOT_STATED)) for part, name, licence in rows])


def _passes(manifest: Mapping[str, Any]) -> str:
    passes = manifest.get("passes") or ()
    if not passes:
        return "Nothing: the model is as it came."
    rows = [(run["name"], escape(run["reason"]), with_unit(run["size_bytes_after"], "bytes")) for run in passes]
    return table(("Pass", "Reason", "Size after"), rows)


def _evaluation(manifest: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    rows = [
        (
            row["axis"], escape(", ".join(filter(None, [named(row), conditions_text(row.get("conditions") or {})]))), escape(change_text(row)),
            escape(_interval(row)), escape(limit_text(row)), row["provenance"], row.get("verdict") or "reported",
        )
        for row in manifest.get("results") or ()
    ]  # fmt: skip
    machine = manifest.get("machine") or {}
    test = (source.get("rows") or {}).get("test")
    text = f"Before → after against the uncompressed float32 model{f' on {number(test, 0)} test samples' if test else ''}."
    text += f" Checked on {escape(machine.get('cpu', 'an unknown CPU'))}. Proof: `measured` on the device or a CPU of its kind; `emulated` under CPU emulation; "
    text += "`predicted` by a model or table; `host` on another machine standing in, which proves nothing for the device."
    return text + "\n\n" + table(("Axis", "Figure", "Before → after", "95 % interval", "Limit", "Proof", "Verdict"), rows)


def _interval(row: Mapping[str, Any]) -> str:
    """The column says 95 %; a prediction's says its own."""
    return interval_text(row) + ("" if level(row) == 95 or not row.get("interval") else f" ({level(row)} %)")


def _limits(manifest: Mapping[str, Any]) -> Iterable[str]:
    rows = manifest.get("results") or ()
    program = manifest.get("program") or {}
    preprocess = program.get("preprocess") or {}
    yield f"The figures hold for {escape(_device(manifest))} and the versions in manifest.json; other devices have other kernels and may give other answers."
    told = set()
    for row in rows:
        if (verdict := row.get("verdict")) in ("broken", "unproven") and (row["axis"], verdict) not in told:
            told.add((row["axis"], verdict))
            missing = row.get("value") is None
            figure = f"{row['metric']} {with_unit(row.get('value'), row['unit'])}, limit {limit_text(row)}" if not missing else "no figure"
            yield f"**{verdict.capitalize()}**: {row['axis']} ({escape(figure)}){': ' if row.get('reason') else ''}{escape(row.get('reason') or '')}."
    for row in rows:
        if row["metric"] in ("batch invariance", "padding invariance") and row.get("value") is not None:
            reason = f"; {escape(row['reason'])}" if row.get("reason") else ""
            yield f"{row['metric'].capitalize()}: {with_unit(row['value'], row['unit'])} of {number(row.get('n'), 0)} samples keep their label{reason}."
    for run in manifest.get("passes") or ():
        if run["name"].startswith("quantize-"):
            yield from _quantized(run)
    if preprocess.get("max_length"):
        yield f"Inputs longer than {preprocess['max_length']} tokens are cut."
    if program.get("reduced_range"):
        yield (
            f"Weights of {len(program['reduced_range'])} layers use 7 bits: on this CPU, without VNNI, sums of theirs could saturate at 16 bits. "
            "Those of the others did not on calibration data."
        )
    if program.get("labels"):
        yield "It knows only its own labels: whatever the input, the answer is one of them. It was not tested for bias."


def _quantized(run: Mapping[str, Any]) -> Iterable[str]:
    options = run.get("options") or {}
    if run["name"] == "quantize-dynamic":
        yield "Weights are int8 and activations are scaled anew for every call, so what else is in a batch can move an answer."
    if options.get("reduce_range") is False:
        yield "Weights use all 8 bits: on x86 CPUs without VNNI, 16-bit sums can saturate and accuracy can fall; build for such a CPU with its own profile."
    elif options.get("reduce_range"):
        yield "Weights use 7 bits, so that 16-bit sums on x86 CPUs without VNNI do not saturate."


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _how_to_run(manifest: Mapping[str, Any]) -> str:
    versions, program = manifest.get("versions") or {}, manifest.get("program") or {}
    kind = (program.get("preprocess") or {}).get("kind", "text")
    needs = ["onnxruntime", "numpy", *{"text": ["tokenizers"], "image": ["pillow"], "pixels": ["pillow"]}.get(kind, [])]
    example = {"image": "photo.jpg", "pixels": "page.png", "audio": "speech.wav", "tensors": "inputs.npz"}.get(kind, '"some text"')
    install = " ".join(f"{name}=={versions[name].split('+')[0]}" if name in versions else name for name in needs)
    return f"In the bundle's folder, anywhere:\n\n```sh\npip install {install}\npython run.py {example}\n```"
