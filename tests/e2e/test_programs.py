"""Programs with state and of several components, as a user builds them: Silero VAD, and RapidOCR's three models as one."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from edgepipe.importing import import_file
from tests.e2e.command import Project, copy, manifest_of
from tests.stateful_models import recurrent, write_wav

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = Path(__file__).parents[2] / "examples"
# Few samples say little, and a busy machine's times nothing.
LOOSE = "\n[budget]\nmax_size_ratio = 1.0\nmax_latency_ratio = 20.0\nmax_accuracy_drop = 5.0\naccuracy_margin = 50.0\n"
VAD_RECIPE = """\
[[step]]
pass = "fix-inputs"
[step.options]
values = { sr = 16000 }
shapes = { input = [1, 576], state = [2, 1, 128] }

[[step]]
pass = "optimize-graph"

[[step]]
pass = "quantize-dynamic"
"""
OCR_RECIPE = """\
[[step]]
pass = "optimize-graph"

[[step]]
pass = "quantize-dynamic"
on = ["recogniser"]
"""
BARE = """\
import runpy, sys

for name in ("edgepipe", "torch", "transformers", "onnx", "tokenizers", "cv2", "scipy"):
    sys.modules[name] = None
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def made(example: str, out: Path, counts: dict[str, int]) -> Path:
    import_file(EXAMPLES / example / "make_data.py", f"make_{example}").make(out, counts)
    return out


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("voice_activity", tmp_path_factory.mktemp("vad"), {"calibration": 2, "dev": 2, "test": 6})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("ocr", tmp_path_factory.mktemp("ocr"), {"calibration": 2, "dev": 2, "test": 8})


def data_table(folder: Path) -> str:
    return "\n[data]\n" + "".join(f'{name} = "{folder / name}.jsonl"\n' for name in ("calibration", "dev", "test"))


@pytest.fixture(scope="module")
def vad(e2e_cache: Path, tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Project:
    """The voice-activity example on a few recordings, with its bundle in `build`. Read only."""
    folder = tmp_path_factory.mktemp("vad-project")
    model = e2e_cache / "downloads" / "voice_activity" / "silero_vad.onnx"
    text = f'model = "{model}"\ntask = "voice-activity"\nprofiles = ["host"]\nrecipe = "recipe.toml"\n{data_table(recordings)}{LOOSE}'
    (folder / "edgepipe.toml").write_text(text)
    (folder / "recipe.toml").write_text(VAD_RECIPE)
    project = Project(folder, e2e_cache)
    project.passes("compress", "--quiet")
    return project


@pytest.fixture(scope="module")
def ocr(e2e_cache: Path, tmp_path_factory: pytest.TempPathFactory, images: Path) -> Project:
    """The OCR example on a few images, with its bundle in `build`. Read only."""
    folder = tmp_path_factory.mktemp("ocr-project")
    downloads = e2e_cache / "downloads" / "ocr"
    components = "".join(f'{role} = "{downloads / role}.onnx"\n' for role in ("detector", "classifier", "recogniser"))
    head = 'program = "ocr"\ntask = "ocr"\nprofiles = ["host"]\nrecipe = "recipe.toml"\n'
    (folder / "edgepipe.toml").write_text(f"{head}[components]\n{components}{data_table(images)}{LOOSE}")
    (folder / "recipe.toml").write_text(OCR_RECIPE)
    project = Project(folder, e2e_cache)
    project.passes("compress", "--quiet")
    return project


def result(manifest: dict[str, Any], metric: str, component: str) -> dict[str, Any]:
    (row,) = [row for row in manifest["results"] if row["metric"] == metric and row["component"] == component]
    return row  # type: ignore[no-any-return]


def run_bundle(bundle: Path, *inputs: str) -> list[dict[str, Any]]:
    """What the bundle's run.py answers where nothing but its own needs can be imported."""
    (bundle.parent / "bare.py").write_text(BARE)
    command = [sys.executable, str(bundle.parent / "bare.py"), "run.py", *inputs]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_silero_is_compressed_with_its_state(vad: Project) -> None:
    manifest = manifest_of(vad.folder / "build")

    assert [(step["name"], step["on"]) for step in manifest["passes"]] == [
        (name, "model") for name in ("fix-inputs", "optimize-graph", "quantize-dynamic")
    ]
    assert manifest["program"]["kind"] == "stream"
    assert manifest["program"]["preprocess"] == {"kind": "audio", "rate": 16000, "chunk": 512, "context": 64, "batch": 1}
    f1 = result(manifest, "speech F1", "model")
    assert f1["baseline"] > 90 and f1["value"] > 90
    assert manifest["model"]["size_bytes"] < 0.6 * manifest["baseline"]["size_bytes"]
    assert manifest["model"]["flops"] > 0
    artifact = json.loads((vad.folder / "build" / "artifact.json").read_text())
    assert [(entry["input"], entry["output"]) for entry in artifact["components"]["model"]["state"]] == [("state", "stateN")]


def test_bundle_says_where_speech_is(vad: Project, recordings: Path) -> None:
    rows = [json.loads(line) for line in (recordings / "test.jsonl").read_text().splitlines()]
    (answer,) = run_bundle(vad.folder / "build", str(recordings / rows[0]["audio"]))

    first, last = (float(word) for word in (rows[0]["label"].split()[0].split("-")[0], rows[0]["label"].split("-")[-1]))
    assert abs(answer["speech"][0][0] - first) < 0.3 and abs(answer["speech"][-1][1] - last) < 0.3


def test_stream_is_judged_again_and_by_fidelity(vad: Project, tmp_path: Path) -> None:
    vad.passes("validate", "build", "--quiet")

    project = Project(copy(vad.folder, tmp_path / "again"), vad.cache)
    project.passes("compress", "--task", "fidelity", "--force", "--quiet")
    assert result(manifest_of(project.folder / "build"), "agreement", "model")["value"] > 95


def test_planned_recipe_fixes_what_silero_never_changes(vad: Project, tmp_path: Path) -> None:
    model = vad.cache / "downloads" / "voice_activity" / "silero_vad.onnx"

    done = Project(tmp_path, vad.cache).passes("plan", model, "--task", "voice-activity", "--profile", "host", "--json")

    first, *others = json.loads(done.stdout)["steps" if "steps" in json.loads(done.stdout) else "step"]
    assert first["pass"] == "fix-inputs"
    assert first["options"] == {"values": {"sr": 16000}, "shapes": {"input": [1, 576], "state": [2, 1, 128]}}
    assert others[0]["pass"] == "optimize-graph"


def test_planned_recipe_names_the_component_of_every_step(ocr: Project, tmp_path: Path) -> None:
    project = Project(copy(ocr.folder, tmp_path / "project"), ocr.cache)
    text = (project.folder / "edgepipe.toml").read_text().replace('recipe = "recipe.toml"\n', 'compress = ["detector", "recogniser"]\n')
    (project.folder / "edgepipe.toml").write_text(text)

    project.passes("plan", "--write", "planned.toml")

    steps = tomllib.loads((project.folder / "planned.toml").read_text())["step"]
    assert list(dict.fromkeys(tuple(step["on"]) for step in steps)) == [("detector",), ("recogniser",)]
    project.passes("plan", "--recipe", "planned.toml")


def test_ocr_is_compressed_one_component_at_a_time_and_judged_whole(ocr: Project) -> None:
    manifest = manifest_of(ocr.folder / "build")

    assert [(step["name"], step["on"]) for step in manifest["passes"]] == [
        ("optimize-graph", "detector"),
        ("optimize-graph", "classifier"),
        ("optimize-graph", "recogniser"),
        ("quantize-dynamic", "recogniser"),
    ]
    assert sorted(entry["role"] for entry in manifest["components"]) == ["classifier", "detector", "recogniser"]
    accuracy = result(manifest, "character accuracy", "pipeline")
    assert accuracy["baseline"] > 95 and accuracy["value"] > 93
    whole = result(manifest, "component bytes", "pipeline")
    parts = [result(manifest, "component bytes", role) for role in ("detector", "classifier", "recogniser")]
    assert whole["value"] == sum(part["value"] for part in parts) == manifest["model"]["size_bytes"]
    assert whole["baseline"] == sum(part["baseline"] for part in parts)
    assert whole["verdict"] == "held" and {part["verdict"] for part in parts} == {None}
    assert {row["component"] for row in manifest["results"] if row["axis"] != "size"} == {"pipeline"}


def test_bundle_reads_an_image(ocr: Project, images: Path) -> None:
    from edgepipe.edit_distance import code_points, mistakes

    rows = [json.loads(line) for line in (images / "test.jsonl").read_text().splitlines()]
    answers = run_bundle(ocr.folder / "build", *(str(images / row["image"]) for row in rows))

    pairs = [(" ".join(line["text"] for line in answer["lines"]), row["label"]) for answer, row in zip(answers, rows, strict=True)]
    wrong, characters = np.sum([mistakes(code_points(read), code_points(true)) for read, true in pairs], axis=0)
    assert wrong / characters < 0.07
    assert all(len(line["box"]) == 4 for answer in answers for line in answer["lines"])


def test_only_the_named_components_are_touched(ocr: Project, tmp_path: Path) -> None:
    project = Project(copy(ocr.folder, tmp_path / "project"), ocr.cache)
    text = (
        (project.folder / "edgepipe.toml")
        .read_text()
        .replace('recipe = "recipe.toml"\n', 'recipe = "recipe.toml"\ncompress = ["classifier"]\n')
    )
    (project.folder / "edgepipe.toml").write_text(text)

    project.passes("compress", "--force", "--quiet")

    manifest = manifest_of(project.folder / "build")
    assert [(step["name"], step["on"]) for step in manifest["passes"]] == [("optimize-graph", "classifier")]
    recogniser = next(entry for entry in manifest["components"] if entry["role"] == "recogniser")
    assert recogniser["bytes"] == (ocr.cache / "downloads" / "ocr" / "recogniser.onnx").stat().st_size


def test_tampered_component_is_found_out(ocr: Project, tmp_path: Path) -> None:
    project = Project(copy(ocr.folder, tmp_path / "project"), ocr.cache)
    (project.folder / "build" / "detector" / "more.onnx").write_bytes(b"x")

    project.refuses("validate", "build", code=3, says=["detector/more.onnx", "was added"])


def without_characters(folder: Path, downloads: Path) -> None:
    model = onnx.load(downloads / "recogniser.onnx")
    del model.metadata_props[:]
    onnx.save_model(model, folder / "plain.onnx")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (('recogniser = "', 'reader = "'), 2, ['no component "reader"', "recogniser"]),
        (("recogniser.onnx", "nowhere.onnx"), 3, ["the recogniser's file is not there", "nowhere.onnx"]),
        (('program = "ocr"', 'program = "ocr"\ncompress = ["detektor"]'), 2, ['no component "detektor"', "detector"]),
        (('program = "ocr"', 'program = "ocr"\ncharacters = "three.txt"'), 2, ["3 characters are listed", "6625"]),
        (("DOWNLOADS/recogniser.onnx", "plain.onnx"), 2, ["no list of characters", "characters ="]),
        (("DOWNLOADS/classifier.onnx", "stream.onnx"), 3, ["the classifier does not take one image"]),
    ],
)
def test_wrong_component_is_refused_before_anything_runs(
    ocr: Project, tmp_path: Path, change: tuple[str, str], code: int, says: Sequence[str]
) -> None:
    project = Project(copy(ocr.folder, tmp_path / "project"), ocr.cache)
    downloads = ocr.cache / "downloads" / "ocr"
    (project.folder / "three.txt").write_text("a\nb\nc\n")
    without_characters(project.folder, downloads)
    onnx.save_model(recurrent(), project.folder / "stream.onnx")
    before, after = change[0].replace("DOWNLOADS", str(downloads)), change[1]
    text = (project.folder / "edgepipe.toml").read_text()
    assert before in text
    (project.folder / "edgepipe.toml").write_text(text.replace(before, after))

    project.refuses("compress", "--force", code=code, says=says)


def test_ocr_without_a_recogniser_is_refused(ocr: Project, tmp_path: Path) -> None:
    project = Project(copy(ocr.folder, tmp_path / "project"), ocr.cache)
    lines = (project.folder / "edgepipe.toml").read_text().splitlines()
    (project.folder / "edgepipe.toml").write_text("\n".join(line for line in lines if not line.startswith("recogniser")))

    project.refuses("compress", "--force", code=2, says=["needs a recogniser"])


def test_audio_of_another_rate_is_refused(vad: Project, tmp_path: Path) -> None:
    project = Project(copy(vad.folder, tmp_path / "project"), vad.cache)
    for name in ("a", "b", "c", "d"):
        write_wav(project.folder / f"{name}.wav", np.random.default_rng(ord(name)).uniform(-1, 1, 8000), rate=8000)
    rows = [{"audio": f"{name}.wav", "label": "0.1-0.5"} for name in "abcd"]
    (project.folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    project.refuses("compress", "--force", "--data", "data.jsonl", code=3, says=["8000 samples a second", "a.wav", "ffmpeg"])


def test_model_without_state_is_no_voice_activity_detector(vad: Project, tmp_path: Path) -> None:
    project = Project(copy(vad.folder, tmp_path / "project"), vad.cache)
    onnx.save_model(recurrent(after="gone"), project.folder / "plain.onnx")

    project.refuses("compress", "plain.onnx", "--task", "voice-activity", "--force", code=2, says=["no state was found", "[stream.state]"])


def test_browser_refuses_what_its_driver_cannot_run(ocr: Project) -> None:
    done = ocr.run("compress", "--profile", "browser-wasm", "--out", "elsewhere", "--quiet")

    assert done.returncode in (0, 2, 5)  # without a browser set up, this machine stands in, which proves nothing
    if done.returncode:
        assert "the browser's driver runs single models" in done.stderr


def test_stream_of_arrays_needs_no_audio(e2e_cache: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, e2e_cache)
    onnx.save_model(recurrent(), tmp_path / "stream.onnx")
    np.savez(tmp_path / "samples.npz", x=np.random.default_rng(0).standard_normal((40, 12, 1, 40)).astype(np.float32))
    (tmp_path / "recipe.toml").write_text('[[step]]\npass = "optimize-graph"\n')
    loose = ("--budget", "max_size_ratio=2", "--budget", "max_latency_ratio=20")

    project.passes(
        "compress",
        "stream.onnx",
        "--profile",
        "host",
        "--task",
        "fidelity",
        "--data",
        "samples.npz",
        "--recipe",
        "recipe.toml",
        *loose,
        "--quiet",
    )

    manifest = manifest_of(tmp_path / "build")
    assert manifest["program"]["kind"] == "stream"
    assert result(manifest, "agreement", "model")["value"] == pytest.approx(100)
