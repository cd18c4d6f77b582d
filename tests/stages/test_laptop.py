"""The best GGUF for a laptop: docs/laptop.md's job and commands on a real model, beside llama.cpp's Q4_K_M."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from inlay.nas.engines.llama_cpp import process
from inlay.nas.pieces.texts import Texts
from inlay.nas.workspace import Workspace

PAGE = (Path(__file__).parents[2] / "docs" / "laptop.md").read_text(encoding="utf-8")
PRESET = "Q4_K_M"
PRESET_BYTES = 103_668_480
"""Of that model's matrices and norms in the preset, which the search is given as its limit."""
HOUR = 3600.0


@pytest.mark.slow
@pytest.mark.timeout(HOUR)
def test_the_file_of_the_page_beats_q4_k_m_at_its_bytes(
    smollm2: Path,
    texts: tuple[Path, Path],
    tmp_path: Path,
    inlay_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Nothing is trained; few tokens judge, and few candidates are tried."""
    (console,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    written, _, after = console.partition("$ cat laptop.yaml\n")[2].partition("$ ")
    values = yaml.safe_load(written)
    values["parent"] = str(smollm2)
    values["data"]["validate"]["tokens"] = "1k"
    values["solve"] = {"pool": 2, "corrections": 0}
    values["budget"] = {"weights": f"{PRESET_BYTES}B"}
    (tmp_path / "laptop.yaml").write_text(yaml.safe_dump(values))
    for name, text in zip(("train.txt", "judge.txt"), texts, strict=True):
        shutil.copy(text, tmp_path / name)

    commands = re.findall(r"^\$ inlay (.*)$", f"$ {after}", re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["run", "export"]
    for command in commands:
        done = inlay_command(*command.split(), cwd=tmp_path, timeout=HOUR)
        assert done.returncode == 0, done.stderr

    place = Workspace(tmp_path / "laptop.search")
    evaluation = place.read_json("evaluation.json")
    child, preset = evaluation[evaluation["chosen"]], evaluation["presets"][PRESET]
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert preset["weights_bytes"] == PRESET_BYTES
    assert child["weights_bytes"] <= PRESET_BYTES
    assert file.stat().st_size == child["file_bytes"] <= preset["file_bytes"]
    assert child["kl_nats"] <= preset["kl_nats"]
    assert child["times"] == "measured"
    assert child["decode_tokens_per_second"] > evaluation["parent"]["decode_tokens_per_second"]

    ids = Texts.of(place.read_json("texts.json")).report.load(place.store).astype("int64")
    (unpacked,) = (tmp_path / "laptop.search" / "scratch" / "parents").iterdir()
    parent = AutoModelForCausalLM.from_pretrained(unpacked, dtype=torch.float32)
    found = []
    with process(None) as engine:
        engine.ask("open", models={"file": str(file)}, tokens=ids.shape[1], sequences=1, threads=1)
        for number, ids_S in enumerate(ids):
            output = tmp_path / f"{number}.npy"
            engine.ask("logits", model="file", ids=ids_S.tolist(), output=str(output))
            with torch.inference_mode():
                own_SV = parent(torch.from_numpy(ids_S)[None]).logits[0]
            found.append(kl_of(own_SV, torch.from_numpy(np.load(output))))
    # llama.cpp rounds what matrices read, too: its Q8_0 of the unchanged parent is 0.005 away.
    assert np.mean(found) == pytest.approx(child["kl_nats"], rel=0.1, abs=0.006)


def kl_of(parent_SV: torch.Tensor, child_SV: torch.Tensor) -> float:
    """Mean KL of the next token, nats, at all positions but the last, as `evaluation.json` has it."""
    parent, child = (torch.log_softmax(logits[:-1].double(), -1) for logits in (parent_SV, child_SV))
    return float((parent.exp() * (parent - child)).sum(-1).mean())
