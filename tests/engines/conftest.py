"""llama.cpp as the other side of the tests of GGUF files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay.nas.engines.gguf import add_fields, tokenizer_metadata

Tokens = Callable[[Path, list[str]], dict[str, Any]]

_WIDTH = 32


@pytest.fixture(scope="session")
def llama_tokens() -> Tokens:
    """`llama_tokens(file, texts)`: `answers`, the ids of each text and their text, and `stops`."""

    def tokens(file: Path, texts: list[str]) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__).with_name("llama_tokens.py")), str(file)]
        done = subprocess.run(
            command, input=json.dumps(texts), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        answered: dict[str, Any] = json.loads(done.stdout)
        return answered

    return tokens


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Callable[[Path, int], Path]:
    """`vocabulary_file(folder, vocab)`: a GGUF file with the tokenizer of a model folder.

    The model in it is of zeros: the binding ends its process at a file without tensors, and where only the vocabulary
    is asked for.
    """
    from gguf import GGUFWriter

    def write(folder: Path, vocab: int) -> Path:
        file = tmp_path / "vocabulary.gguf"
        writer = GGUFWriter(file, "llama")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(_WIDTH)
        writer.add_feed_forward_length(_WIDTH)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        add_fields(writer, tokenizer_metadata(folder, vocab))
        writer.add_tensor("token_embd.weight", np.zeros((vocab, _WIDTH), np.float16))
        for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            writer.add_tensor(f"{name}.weight", np.zeros(_WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(f"blk.0.{name}.weight", np.zeros((_WIDTH, _WIDTH), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return write
