"""inlay chat on a finished search: the answers of the models that are exported, in both engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Run = Callable[..., "subprocess.CompletedProcess[str]"]

PROMPT = "Once upon a time"
TOKENS = 12
ANSWER = {
    "text", "tokens", "ended", "prefill_ns", "decode_ns", "prefill_tokens_per_second", "decode_tokens_per_second",
}  # fmt: skip


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """The finished search, to be changed: its tables and pieces are left out."""
    place = tmp_path / "job.search"
    shutil.copytree(finished / "job.search", place, ignore=shutil.ignore_patterns("scratch", "records"))
    return place


def change(workspace: Path, section: str | None = None, **values: Any) -> None:
    """Changes the job that the search says it was of."""
    path = workspace / "run.json"
    run = json.loads(path.read_text())
    (run["job"] if section is None else run["job"][section]).update(values)
    path.write_text(json.dumps(run))


def greedy(folder: Path, prompt: str) -> str:
    """What Transformers' `generate` adds."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids_1P = torch.tensor([tokenizer(prompt)["input_ids"]])
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    whole_T = model.float().generate(ids_1P, max_new_tokens=TOKENS, do_sample=False)[0]
    before, after = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (ids_1P[0], whole_T))
    return str(after.removeprefix(before))


@pytest.mark.parametrize(("engine", "form"), [("transformers", "auto"), ("llama.cpp", "f32")])
def test_both_answers_are_greedy_decoding(
    engine: str, form: str, workspace: Path, trained_parent: Path, tmp_path: Path, inlay_command: Run
) -> None:
    change(workspace, "hardware", engine=engine, format=form)
    # Whatever the child has, `depth` lacks layers only, and every engine runs that.
    words = ("--solution", "depth")
    assert inlay_command("export", workspace, "-o", tmp_path / "child", *words, cwd=tmp_path).returncode == 0
    asked = ("chat", workspace, "--prompt", PROMPT, "--tokens", str(TOKENS), "--json", *words)
    done = inlay_command(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["engine"], told["solution"], told["prompt"]) == (engine, "depth", PROMPT)
    for name, folder in (("child", tmp_path / "child"), ("parent", trained_parent)):
        answer = told[name]
        assert set(answer) == ANSWER
        assert answer["text"] == greedy(folder, PROMPT)
        if not answer["ended"]:
            assert answer["tokens"] == TOKENS
        assert answer["prefill_tokens_per_second"] == told["prompt_tokens"] / answer["prefill_ns"] * 1e9
        assert answer["decode_tokens_per_second"] == answer["tokens"] / answer["decode_ns"] * 1e9
    assert set(told["ratio"]) == {"prefill", "decode"}
    if engine == "llama.cpp":
        kept = {path: path.stat().st_mtime_ns for path in (workspace / "scratch" / "chat").iterdir()}
        assert len(kept) == 2
        again = json.loads(inlay_command(*asked, cwd=tmp_path).stdout)
        assert again["child"]["text"] == told["child"]["text"]
        assert {path: path.stat().st_mtime_ns for path in kept} == kept, "the files were written once"


@pytest.mark.slow
def test_prompts_come_line_by_line_up_to_an_empty_one(workspace: Path) -> None:
    command = [sys.executable, "-m", "inlay.nas.cli", "chat", str(workspace), "--tokens", "4"]
    given = f"{PROMPT}\n{'long ' * 2000}\nOne day\n\nnever read\n"
    plain = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, check=False)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.count("child:\n") == plain.stdout.count("parent:\n") == 2
    assert plain.stdout.count("decode tokens/s") == plain.stdout.count("ratio") == 2
    assert "positions; give a shorter one" in plain.stderr
    lines = subprocess.run(
        [*command, "--json"], input=f"{PROMPT}\nOne day", capture_output=True, text=True, timeout=300, check=False
    )
    assert lines.returncode == 0, lines.stderr
    assert [json.loads(line)["prompt"] for line in lines.stdout.splitlines()] == [PROMPT, "One day"]


def test_a_chat_template_is_used_unless_raw(
    workspace: Path, trained_parent: Path, tmp_path: Path, inlay_command: Run
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(trained_parent, parent)
    (parent / "chat_template.jinja").write_text("{{ bos_token }}User: {{ messages[0].content }}\nAnswer:")
    change(workspace, parent=str(parent))
    counts = []
    for words in ((), ("--raw",)):
        asked = ("chat", workspace, "--prompt", PROMPT, "--tokens", "2", "--json", *words)
        counts.append(json.loads(inlay_command(*asked, cwd=tmp_path).stdout)["prompt_tokens"])
    tokenizer: Any = AutoTokenizer.from_pretrained(trained_parent)
    templated = f"{tokenizer.bos_token or ''}User: {PROMPT}\nAnswer:"
    assert counts == [
        len(tokenizer(templated, add_special_tokens=False)["input_ids"]), len(tokenizer(PROMPT)["input_ids"]),
    ]  # fmt: skip


def test_what_is_not_there_is_one_sentence(workspace: Path, tmp_path: Path, inlay_command: Run) -> None:
    def refusal(*words: str) -> str:
        done = inlay_command("chat", workspace, "--prompt", PROMPT, *words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        return str(done.stderr)

    assert "--solution: there is no solution `nobody`" in refusal("--solution", "nobody")
    venv.create(tmp_path / "bare", with_pip=False)
    change(workspace, "hardware", engine="llama.cpp", format="f16", python=str(tmp_path / "bare" / "bin" / "python"))
    assert "has no binding of llama.cpp" in refusal("--solution", "depth")
    assert not (workspace / "scratch").exists()
    change(workspace, "hardware", engine="transformers", format="auto", python=None, device="cuda:99")
    assert "hardware.device: cuda:99 is not on this machine; chat where the search ran" in refusal()
    (workspace / "run.json").unlink()
    assert "has no finished search; let `inlay run` finish" in refusal()
