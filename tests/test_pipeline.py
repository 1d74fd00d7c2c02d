"""Recipes are checked before anything runs; results are cached by everything that decides them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepipe.artifact import Artifact, Component
from edgepipe.config import Data, Recipe, load_recipe
from edgepipe.data import Splits
from edgepipe.errors import PassError, UsageError
from edgepipe.passes import PassOptions, PassSpec, get_pass
from edgepipe.pipeline import Setting, cache_key, run_recipe
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.recipe_check import baseline_recipe, check_recipe
from edgepipe.store import Store
from edgepipe.worker_process import WorkerProcess
from tests.models import sentences, write_csv

PLUGIN = """
from dataclasses import replace

from edgepipe import PassOptions, register_pass


class Label(PassOptions):
    name: str = "new"


@register_pass("set-label", takes={"model": "onnx"}, gives={"model": "onnx"}, options=Label, checks=())
def set_label(artifact, options, ctx):
    "Puts a name into the program."
    if options.name == "raise":
        raise RuntimeError("no such label")
    if options.name == "nothing":
        return artifact
    if options.name == "none":
        return None
    if options.name == "peek":
        ctx.data("test")
    return artifact.with_program(name=options.name)
"""


class Label(PassOptions):
    name: str = "new"


def set_label(artifact: Artifact, options: Label, ctx: object) -> Artifact:
    raise AssertionError("passes run in the worker")


SET_LABEL = PassSpec("set-label", set_label, Label, {"model": "onnx"}, {"model": "onnx"}, source=PLUGIN)


def recipe(*steps: str | dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"step": [{"pass": step} if isinstance(step, str) else step for step in steps]})


def with_adapter(artifact: Artifact) -> Artifact:
    return artifact.with_component("adapter", Component("peft", artifact.model.files, {}, 1))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path_factory.mktemp("worker") / "run.log", Silent()) as process:
        yield process


@pytest.fixture
def setting(store: Store, worker: WorkerProcess, tmp_path: Path) -> Setting:
    data = Data(calibration=str(write_csv(tmp_path / "calibration.csv", sentences(20))))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    return Setting(store, worker, Silent(), load_profile("rpi4"), data, Splits(data, ("text", "label")), 1, (str(tmp_path / "plugin.py"),))


def labelled(name: str) -> list[Any]:
    return [(recipe("set-label").steps[0], SET_LABEL, Label(name=name))]


def test_recipe_that_can_run_gives_its_passes_and_options(onnx_artifact: Artifact) -> None:
    steps = check_recipe(recipe("optimize-graph", {"pass": "quantize-dynamic", "options": {"per_channel": False}}), onnx_artifact)

    assert [spec.name for _, spec, _ in steps] == ["optimize-graph", "quantize-dynamic"]
    assert (steps[1][2].per_channel, steps[1][2].reduce_range) == (False, None)


def test_unknown_pass_names_the_nearest(onnx_artifact: Artifact) -> None:
    with pytest.raises(UsageError, match='unknown pass "quantise-dynamic"') as caught:
        check_recipe(recipe("quantise-dynamic"), onnx_artifact)
    assert caught.value.fix == 'did you mean "quantize-dynamic"?'


def test_unknown_option_names_file_line_and_the_nearest(onnx_artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[[step]]\npass = "optimize-graph"\n[[step]]\npass = "quantize-dynamic"\n[step.options]\nper_chanel = true\n')

    with pytest.raises(UsageError, match='unknown key "per_chanel"') as caught:
        check_recipe(load_recipe(path), onnx_artifact, str(path))
    assert (caught.value.where, caught.value.fix) == (f"{path}:6", 'did you mean "per_channel"?')


def test_option_that_was_set_elsewhere_names_that_place(onnx_artifact: Artifact) -> None:
    wrong = recipe({"pass": "quantize-dynamic", "options": {"per_chanel": True}})

    with pytest.raises(UsageError) as caught:
        check_recipe(wrong, onnx_artifact, None, {("quantize-dynamic", "per_chanel"): "--set quantize-dynamic.per_chanel"})
    assert caught.value.where == "--set quantize-dynamic.per_chanel"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (("quantize-dynamic", "optimize-graph"), "quantize-dynamic must come after optimize-graph"),
        (("optimize-graph", "export-onnx"), "must come"),
        (("export-onnx", "prune-ffn"), "must come"),
    ],
)
def test_wrong_order_is_refused_by_name(torch_artifact: Artifact, steps: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_recipe(recipe(*steps), torch_artifact)


def test_torch_model_cannot_be_quantized_before_export(torch_artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="takes a onnx model, but there it is torch") as caught:
        check_recipe(recipe("quantize-dynamic"), torch_artifact)
    assert caught.value.fix == "add export-onnx before it"


def test_recipe_that_ends_with_torch_is_refused(torch_artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="ends with a torch model"):
        check_recipe(recipe("prune-ffn"), torch_artifact)


def test_merge_without_an_adapter_is_refused(torch_artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="takes a peft adapter, but there is no adapter") as caught:
        check_recipe(recipe("merge-lora", "export-onnx"), torch_artifact)
    assert caught.value.fix is not None
    assert "--adapter" in caught.value.fix


def test_adapter_that_is_not_merged_is_refused(torch_artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="does not merge it"):
        check_recipe(recipe("export-onnx"), with_adapter(torch_artifact))
    check_recipe(recipe("merge-lora", "export-onnx"), with_adapter(torch_artifact))


def test_baseline_is_what_merges_and_exports() -> None:
    full = recipe("merge-lora", "prune-ffn", {"pass": "export-onnx", "options": {"opset": 18}}, "optimize-graph", "quantize-dynamic")

    baseline = baseline_recipe(full)

    assert baseline is not None
    assert [step.name for step in baseline.steps] == ["merge-lora", "export-onnx"]
    assert baseline.steps[1].options == {"opset": 18}


def test_onnx_model_is_its_own_baseline() -> None:
    assert baseline_recipe(recipe("optimize-graph", "quantize-dynamic")) is None


def test_everything_that_decides_a_result_changes_its_key(onnx_artifact: Artifact, setting: Setting, tmp_path: Path) -> None:
    spec = replace(SET_LABEL, data=("calibration",))
    other_data = Data(calibration=str(write_csv(tmp_path / "other.csv", sentences(21))))

    def key(**changes: Any) -> str:
        whole = {
            "spec": spec,
            "options": Label(),
            "before": onnx_artifact,
            "setting": setting,
            "facts": {"cpu.isa": ["asimd"]},
            "costs": {"Attention": 0.9},
        }
        return cache_key(**{**whole, **changes})

    keys = {
        "nothing": key(),
        "name": key(spec=replace(spec, name="other")),
        "source": key(spec=replace(spec, source=PLUGIN + "\n")),
        "libraries": key(spec=replace(spec, libraries=("onnx",))),
        "options": key(options=Label(name="x")),
        "input": key(before=onnx_artifact.with_program(x=1)),
        "data": key(setting=replace(setting, splits=Splits(other_data, ("text", "label")))),
        "threads": key(setting=replace(setting, threads=2)),
        "facts": key(facts={"cpu.isa": ["asimd", "asimddp"]}),
        "costs": key(costs={"Attention": 1.2}),
    }

    assert len(set(keys.values())) == len(keys), keys
    assert all(len(one) == 64 for one in keys.values())
    assert key() == keys["nothing"]


def test_data_that_neither_pass_nor_checks_use_is_no_part_of_its_key(onnx_artifact: Artifact, setting: Setting, tmp_path: Path) -> None:
    calibration, extra = setting.splits.config.calibration, str(write_csv(tmp_path / "other.csv", sentences(21)))
    splits = {
        "same": setting.splits,
        "with dev": Splits(Data(calibration=calibration, dev=extra), setting.splits.columns),
        "other calibration": Splits(Data(calibration=extra), setting.splits.columns),  # what the checks compare on
    }

    keys = {name: cache_key(SET_LABEL, Label(), onnx_artifact, replace(setting, splits=one), {}, {}) for name, one in splits.items()}

    assert keys["with dev"] == keys["same"] != keys["other calibration"]


def test_where_the_model_lies_is_no_part_of_the_key(onnx_artifact: Artifact, setting: Setting) -> None:
    keys = {cache_key(SET_LABEL, Label(), one, setting, {}, {}) for one in (onnx_artifact, setting.store.put(onnx_artifact))}

    assert len(keys) == 1


def test_second_run_takes_every_result_from_the_cache(onnx_artifact: Artifact, setting: Setting) -> None:
    steps = check_recipe(recipe("quantize-dynamic"), onnx_artifact)
    start = setting.store.put(onnx_artifact)

    first, first_runs = run_recipe(steps, start, setting)
    second, second_runs = run_recipe(steps, start, setting)

    assert first == second
    assert [run.cached for run in (*first_runs, *second_runs)] == [False, True]
    assert first_runs[0].checks == second_runs[0].checks != []
    assert first_runs[0].size_bytes_after < first_runs[0].size_bytes_before


def test_same_input_gives_the_same_bytes_again(onnx_artifact: Artifact, setting: Setting, tmp_path: Path) -> None:
    steps = [(recipe("quantize-dynamic").steps[0], get_pass("quantize-dynamic"), get_pass("quantize-dynamic").options())]

    digests = [run_recipe(steps, onnx_artifact, replace(setting, store=Store(tmp_path / name)))[0].digest for name in ("one", "two")]

    assert digests[0] == digests[1]


def test_damaged_result_is_made_again(onnx_artifact: Artifact, setting: Setting) -> None:
    first, _ = run_recipe(labelled("new"), onnx_artifact, setting)
    first.model.main_file.chmod(0o644)
    first.model.main_file.write_bytes(b"damaged")

    again, runs = run_recipe(labelled("new"), onnx_artifact, setting)

    assert (runs[0].cached, again.digest) == (False, first.digest)
    assert setting.store.get(again.digest) == again


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raise", "it raised RuntimeError: no such label"),
        ("nothing", "it changed nothing"),
        ("none", "it returned NoneType"),
        ("peek", "without declaring it"),
    ],
)
def test_pass_that_fails_is_an_error_and_never_cached(onnx_artifact: Artifact, setting: Setting, name: str, message: str) -> None:
    for _ in range(2):
        with pytest.raises(PassError, match=message):
            run_recipe(labelled(name), onnx_artifact, setting)

    assert not (setting.store.root / "store/results").exists()


def test_passes_before_a_failure_are_kept(onnx_artifact: Artifact, setting: Setting) -> None:
    with pytest.raises(PassError):
        run_recipe([*labelled("first"), *labelled("raise")], onnx_artifact, setting)

    _, runs = run_recipe([*labelled("first"), *labelled("second")], onnx_artifact, setting)

    assert [run.cached for run in runs] == [True, False]
