"""What goes beside a model whose vocabulary was cut: its tokenizer and settings with the new ids."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import FileRef
from edgepipe.vocabulary.table import renumbered
from edgepipe.weights import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.vocabulary.tokenizer_file import TokenizerFile


NAMING = ("tokenizer_config.json", "special_tokens_map.json")


def tokens_named(artifact: Artifact) -> set[str]:
    """The tokens that the tokenizer's settings give a part to play: its mask, its padding."""
    settings = [read_json(ref.location) for ref in artifact.assets if ref.path in NAMING]
    values = [value for each in settings for name, value in each.items() if name.endswith("_token")]
    values += [value for each in settings for value in each.get("additional_special_tokens") or ()]
    return {value["content"] if isinstance(value, dict) else value for value in values if isinstance(value, (dict, str))}


def write_assets(artifact: Artifact, tokenizer: TokenizerFile, new_ids: Mapping[int, int], folder: Path) -> tuple[FileRef, ...]:
    """All assets in one folder, since who opens the tokenizer looks for them together: `tokenizer` for the artifact's own."""
    own = artifact.program["preprocess"]["tokenizer"]
    for ref in artifact.assets:
        target = folder / ref.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if ref.path == own:
            target.write_text(json.dumps(tokenizer.data, ensure_ascii=False, indent=2), encoding="utf-8")
        elif ref.path == "tokenizer_config.json":
            _write(target, _of_tokenizer(read_json(ref.location), new_ids))
        elif ref.path == "generation_config.json":
            _write(target, renumbered(read_json(ref.location), new_ids))
        else:
            shutil.copyfile(ref.location, target)
    return tuple(FileRef.of(folder, ref.path) for ref in artifact.assets)


def _of_tokenizer(settings: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """tokenizer_config.json: it tells of added tokens by their ids."""
    added = settings.get("added_tokens_decoder")
    if isinstance(added, dict):
        kept = {str(new_ids[int(index)]): token for index, token in added.items() if int(index) in new_ids}
        settings = {**settings, "added_tokens_decoder": kept}
    return settings


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
