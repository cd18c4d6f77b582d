"""A whole search that chooses its cache and the format of every matrix, from the job to a file with the options that
its child is to be run with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf import GGUFReader

from inlay.nas.engines.registry import ENGINES
from inlay.nas.families import open_parent
from inlay.nas.formats.by_tensor import form_of
from inlay.nas.modeling.full_inlay import OUTPUT, QUERY, VALUE
from inlay.nas.modeling.gated_inlay import DOWN, UP
from inlay.nas.modeling.subblock_inlay import FORMAT
from inlay.nas.tables.architecture import architecture_of
from inlay.nas.variants.entries import entries_of
from inlay.nas.workspace import Workspace

pytestmark = pytest.mark.slow
Run = Callable[..., Any]
CACHE = "kv:q8_0"


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_parent: Callable[..., Path],
    whole_job: Callable[[], dict[str, Any]],
    inlay_here: Run,
) -> Path:
    """What a search under a limit that one cache alone meets leaves."""
    folder = tmp_path_factory.mktemp("cache")
    values = whole_job()
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 256}
    values["parent"] = str(tiny_parent("llama", **sizes, max_position_embeddings=256))
    values["space"] = {"formats": {"choices": ["q8_0", "q4_0"], "by": "tensor"}}
    values["distill"] = values["recover"] = {"tokens": 0}
    values["solve"] = {"pool": 2, "corrections": 1}
    values["hardware"] = {
        "engine": "llama.cpp",
        "kv_format": ["f16", "q8_0"],
        "scenarios": [{"name": "chat", "prefill": 16, "generate": 4}],
    }
    values["budget"] = {"kv": "0.6x"}
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "told").write_text(done.stdout)
    return folder


def test_the_child_has_the_cache_that_meets_the_limit(folder: Path) -> None:
    figures = json.loads((folder / "job.search" / "evaluation.json").read_text())
    parent, child = figures["parent"], figures["child"]
    assert child["architecture"][-1][-1] == CACHE
    assert (parent["kv_format"], child["kv_format"]) == ("f16", "q8_0")
    assert child["kv_bytes"] * 64 == parent["kv_bytes"] * 34
    assert child["kv_bytes_per_token"] * 64 == parent["kv_bytes_per_token"] * 34
    assert child["held_kv_bytes"] == pytest.approx(child["kv_bytes"], abs=2**20 / 100)
    assert child["weights_bytes"] == parent["weights_bytes"]  # nothing else had to lose anything
    (row,) = (row for row in Workspace(folder / "job.search").read_table("scores") if row["ffn"] == CACHE)
    assert row["kl_nats"] > 0
    line = next(line.split() for line in (folder / "told").read_text().splitlines() if "stored in" in line)
    assert line[:4] == ["stored", "in", "f16", "q8_0"]


def test_another_budget_takes_the_other_cache(folder: Path, inlay_here: Run) -> None:
    labels = {}
    for limit in ("kv=1x", "kv=0.6x"):
        done = inlay_here("solve", "job.search", "--limit", limit, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        (solution,) = json.loads(done.stdout)["solutions"]
        assert solution["status"] == "optimal"
        labels[limit] = solution["choices"][-1]
    assert labels == {"kv=1x": "attention:parent + ffn:parent", "kv=0.6x": f"attention:parent + ffn:parent + {CACHE}"}
    done = inlay_here("sweep", "job.search", "--limit", "memory=..1x", "--points", "4", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    chosen = [point["choices"][-1] for point in json.loads(done.stdout)["points"]]
    assert CACHE in chosen[0]
    assert CACHE not in chosen[-1]
    done = inlay_here("solve", "job.search", "--limit", "kv=0.5x", cwd=folder)
    assert done.returncode == 3
    assert "kv <= " in done.stderr


def test_a_mix_of_formats_is_chosen_and_written(folder: Path, inlay_here: Run) -> None:
    done = inlay_here("sweep", "job.search", "--limit", "weights=..0.6x", "--points", "8", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    mixed = next(point for point in points if any("=" in label for label in point["choices"]))
    limit = f"weights={mixed['totals']['weights']}B"
    done = inlay_here("solve", "job.search", "--limit", limit, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (solution,) = json.loads(done.stdout)["solutions"]
    assert any("=" in label for label in solution["choices"])
    name = solution["id"]
    done = inlay_here("export", "job.search", "--solution", name, "--format", "gguf", "-o", "mixed", cwd=folder)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "mixed").glob("*-mixed.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    assert sum(int(tensor.n_bytes) for tensor in tensors.values()) == solution["totals"]["weights"]
    shape = open_parent(Path(yaml.safe_load((folder / "job.yaml").read_text())["parent"])).shape
    names = {"attn_q": QUERY, "attn_v": VALUE, "attn_output": OUTPUT, "ffn_up": UP, "ffn_down": DOWN}
    for layer, block in enumerate(entries_of(shape, architecture_of(solution["choices"]))):
        for tensor, module in names.items():
            stored = block["attention" if tensor.startswith("attn") else "ffn"].get(FORMAT, "f16")
            assert tensors[f"blk.{layer}.{tensor}.weight"].tensor_type.name.lower() == form_of(stored, module)


def test_the_file_says_how_it_is_to_be_run(folder: Path, inlay_here: Run) -> None:
    done = inlay_here("export", "job.search", "--format", "gguf", "-o", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "out").glob("*.gguf")
    card = (folder / "out" / "README.md").read_text()
    assert f"$ llama-server -m {file.name} -fa on -ctk q8_0 -ctv q8_0" in card
    assert "| keys and values in | f16 | q8_0 |" in card
    recipe = json.loads((folder / "out" / "inlay_recipe.json").read_text())
    assert recipe["architecture"][-1][-1] == CACHE
    assert recipe["job"]["hardware"]["kv_format"] == ["f16", "q8_0"]


def test_a_table_for_one_cache_is_refused_where_two_are_to_be_chosen_from(folder: Path, inlay_here: Run) -> None:
    values = yaml.safe_load((folder / "job.yaml").read_text())
    # Mixes of formats, whose labels have commas, are found in a search and in no table that is given.
    table = Workspace(folder / "job.search").read_table("costs")
    rows = [row for row in table if CACHE not in row["variant"] and "," not in row["variant"]]
    names = list(rows[0])
    lines = [",".join("" if row[name] is None else str(row[name]) for name in names) for row in rows]
    (folder / "one.csv").write_text("\n".join([",".join(names), *lines]) + "\n")
    values["hardware"]["costs"] = "one.csv"
    values["space"]["formats"] = values["space"]["formats"]["choices"]
    (folder / "given.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("validate", "given.yaml", cwd=folder)
    assert done.returncode == 2
    told = " ".join(done.stderr.split())
    assert (
        f"one.csv has no row for attention:parent + {CACHE} at layer 0 in scenario chat; measure it on the device for "
        "both caches, or name one cache in hardware.kv_format"
    ) in told


def test_plan_counts_both(folder: Path, inlay_here: Run) -> None:
    done = inlay_here("plan", "job.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = dict(json.loads(done.stdout)["facts"])
    shape = open_parent(Path(yaml.safe_load((folder / "job.yaml").read_text())["parent"])).shape
    storage = ENGINES["llama.cpp"].storage("f16", "cpu")
    own, least = (storage.kv(shape.parent_entry(0, "attention"), shape, 1, 20, form) for form in ("f16", "q8_0"))
    assert f"kv {least / own:.3f}x" in told["least"]
