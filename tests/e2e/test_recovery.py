"""Recovery on the command line: pruned, trained back, killed and gone on, stopped in time; what cannot work is told before."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.command import COMMAND, Project, copy, leftovers, manifest_of
from tests.models import sentences, write_classifier, write_csv

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """
[[step]]
pass = "merge-lora"
[[step]]
pass = "prune-layers"
[step.options]
keep = 1
[[step]]
pass = "prune-vocab"
[[step]]
pass = "prune-ffn"
[step.options]
ratio = 0.5
[[step]]
pass = "recover"
[step.options]
epochs = {epochs}
batch_size = 4
learning_rate = {rate}
[[step]]
pass = "export-onnx"
[[step]]
pass = "optimize-graph"
[[step]]
pass = "quantize-dynamic"
"""
LOOSE = (
    "--budget",
    "max_accuracy_drop=100",
    "--budget",
    "accuracy_margin=100",
    "--budget",
    "max_latency_ratio=100",
    "--budget",
    "max_size_ratio=1",
)
BUILD = ("compress", "--profile", "host", "--recipe", "smallest.toml", *LOOSE)


@pytest.fixture
def pruned(small_source: Path, built: Project, tmp_path: Path) -> Project:
    """The small project with a recipe that prunes and recovers, and a cache of its own."""
    shutil.copytree(built.cache / "devices", tmp_path / "cache" / "devices")
    project = Project(copy(small_source, tmp_path / "project"), tmp_path / "cache")
    write_recipe(project)
    return project


def write_recipe(project: Project, *, epochs: int = 3, rate: float = 3e-4) -> None:
    (project.folder / "smallest.toml").write_text(RECIPE.format(epochs=epochs, rate=rate))


def training_of(folder: Path) -> dict[str, object]:
    step = next(step for step in manifest_of(folder)["passes"] if step["name"] == "recover")
    figures: dict[str, object] = step["figures"]
    return figures


def test_model_is_cut_trained_back_and_tells_how(pruned: Project) -> None:
    pruned.passes(*BUILD)

    manifest = manifest_of(pruned.folder / "build")
    training = training_of(pruned.folder / "build")["training"]
    losses = [loss for _, loss in training["dev"]]  # type: ignore[index]
    assert manifest["model"]["parameters"] < manifest["baseline"]["parameters"]
    assert min(losses) < losses[0]
    report = (pruned.folder / "build" / "report.html").read_text()
    assert "loss on dev" in report and "of tokens fell back" in report
    assert not list((pruned.cache / "store").glob("unfinished/*"))


def test_budget_that_quantization_cannot_hold_is_planned_for_built_and_held(pruned: Project) -> None:
    shutil.rmtree(pruned.folder / "base")
    write_classifier(pruned.folder / "base", hidden_size=64, intermediate_size=2048, num_attention_heads=4)
    pruned.toml().write_text(pruned.toml().read_text().replace('adapters = ["adapter"]\n', ""))
    budgets = (*LOOSE[:6], "--budget", "max_size_ratio=0.1")

    done = pruned.passes("compress", "--profile", "host", *budgets)

    manifest = manifest_of(pruned.folder / "build")
    names = [step["name"] for step in manifest["passes"]]
    assert "on this machine" in done.stderr  # how long training takes
    assert "recover" in names and {"prune-layers", "prune-ffn"} & set(names)
    assert manifest["tuning"]["pruning"]["held"] or "prune-ffn" not in names
    assert manifest["model"]["size_bytes"] <= 0.1 * manifest["baseline"]["size_bytes"]
    assert all(step["reason"] for step in manifest["passes"])


def test_training_killed_goes_on_to_the_same_bytes(pruned: Project, tmp_path: Path) -> None:
    write_recipe(pruned, epochs=40)
    process = subprocess.Popen(
        [*COMMAND, *BUILD, "--verbose"], cwd=pruned.folder, env=pruned.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if (found := re.search(r"recover: training.* (\d+)/1000", line)) and int(found[1]) > 150:
            break
        if "recover: training" in line and list((pruned.cache / "store").glob("unfinished/*/training.pt")):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert list((pruned.cache / "store").glob("unfinished/*/training.pt"))

    pruned.passes(*BUILD, "--quiet")

    other = tmp_path / "other"
    shutil.copytree(pruned.cache / "devices", other / "devices")
    whole = Project(copy(pruned.folder, tmp_path / "whole"), other)
    whole.passes(*BUILD, "--quiet", "--force")
    resumed, straight = (manifest_of(project.folder / "build") for project in (pruned, whole))
    assert resumed["artifact"] == straight["artifact"]
    assert training_of(pruned.folder / "build") == training_of(whole.folder / "build")
    assert leftovers(pruned.cache) == []


def test_time_limit_gives_the_best_so_far_and_says_so(pruned: Project) -> None:
    write_recipe(pruned, epochs=400)

    done = pruned.passes(*BUILD, "--time-limit", "0.4")

    assert "time limit" in done.stdout
    assert "time limit" in str(training_of(pruned.folder / "build")["incomplete"])
    assert "time limit" in (pruned.folder / "build" / "report.html").read_text()
    again = pruned.passes(*BUILD, "--time-limit", "0.4", "--force", "--json")
    step = next(step for step in json.loads(again.stdout)["passes"] if step["name"] == "recover")
    assert not step["cached"]  # the next run has time of its own, and goes on


def test_loss_that_is_no_number_is_an_error_with_advice(pruned: Project) -> None:
    write_recipe(pruned, rate=1.0)
    recipe = (pruned.folder / "smallest.toml").read_text()
    (pruned.folder / "smallest.toml").write_text(
        recipe.replace("learning_rate = 1.0", "learning_rate = 1.0\nwarm_up = 0.0\nobjectives = { logits = 1e38, hidden = 1e38 }")
    )

    pruned.refuses(*BUILD, "--quiet", code=4, says=["diverged", "recover", "learning rate"])


def test_recovery_without_data_to_train_on_is_refused_before_anything_runs(pruned: Project) -> None:
    project = pruned.toml()
    write_csv(pruned.folder / "judge.csv", sentences(60, seed=5))
    write_csv(pruned.folder / "calibrate.csv", sentences(60, seed=6))
    text = re.sub(r'file = "samples.csv"', 'test = "judge.csv"\ncalibration = "calibrate.csv"', project.read_text())
    project.write_text(text)

    pruned.refuses(*BUILD, "--quiet", code=3, says=["recover needs train data", "--train"])


def test_teacher_of_other_labels_is_refused(pruned: Project) -> None:
    write_classifier(pruned.folder / "other", num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})

    pruned.refuses(*BUILD, "--quiet", "--teacher", "other", code=3, says=["different labels", "a, b, c", "negative, positive"])


def test_teacher_of_ones_own_is_learned_from(pruned: Project) -> None:
    write_classifier(pruned.folder / "other", seed=9)

    pruned.passes(*BUILD, "--quiet")
    first = manifest_of(pruned.folder / "build")["artifact"]
    pruned.passes(*BUILD, "--quiet", "--force", "--teacher", "other")

    assert manifest_of(pruned.folder / "build")["artifact"] != first
