"""The formats of GGUF against ggml: llama.cpp's own quantiser rewrites files, and the package gguf reads them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from inlay.nas.errors import UserError
from inlay.nas.formats.gguf import GGUF

ROWS, ODD_ROW = (32, 192, 256, 512), 100
ROUNDING = [form for form in GGUF if form != "f32"]
"""What llama.cpp's quantiser makes of a file of f32."""


def matrix(row: int) -> Any:
    """Rows of very different sizes, of equal numbers, and of zeros."""
    random = np.random.default_rng(row)
    rows = random.normal(size=(48, row)) * np.exp(random.normal(size=(48, 1)))
    rows[3], rows[4, :17], rows[5], rows[6] = 0, 0, rows[7] * 1e-9, 0.5
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Any]]:
    """The tensors that llama.cpp makes, by format and row."""
    folder = tmp_path_factory.mktemp("ggml")
    write_file(folder / "even.gguf", ROWS)
    write_file(folder / "odd.gguf", (*ROWS, ODD_ROW))
    files = {form: folder / f"{form}.gguf" for form in ROUNDING}
    # Where there is nothing that it takes instead, the quantiser refuses the file.
    sources = {form: "even.gguf" if GGUF[form].substitute == "f16" else "odd.gguf" for form in ROUNDING}
    asked = [[str(folder / sources[form]), str(path), GGUF[form].file_type] for form, path in files.items()]
    script = Path(__file__).with_name("llama_quantise.py")
    done = subprocess.run([sys.executable, str(script)], input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    readers = {form: gguf.GGUFReader(path) for form, path in files.items()}
    return {form: {int(t.name[4:-7]): t for t in reader.tensors} for form, reader in readers.items()}


def write_file(path: Path, rows: tuple[int, ...]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for row in rows:
        writer.add_tensor(f"rows{row}.weight", matrix(row))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("form", ROUNDING)
def test_bytes_and_substitutes_are_those_of_llama_cpp(theirs: dict[str, dict[int, Any]], form: str) -> None:
    for row, tensor in theirs[form].items():
        stored = GGUF[form].holding(row)
        assert tensor.tensor_type.name.lower() == stored.name.lower()
        assert (tensor.data.view(np.uint8).reshape(48, -1) == stored.pack(matrix(row))).all()
    assert set(theirs[form]) >= set(ROWS)


@pytest.mark.parametrize("form", list(GGUF))
def test_sizes_and_numbers_are_those_of_the_package_gguf(form: str) -> None:
    known = GGUF[form]
    kind = gguf.GGMLQuantizationType(known.number)
    assert kind.name.lower() == form.lower()
    assert gguf.GGML_QUANT_SIZES[kind] == (known.block, known.block_bytes)
    assert gguf.LlamaFileType(known.file_type).name.lower().removesuffix("_s").endswith(form.lower())
    packed = known.pack(matrix(512))
    assert (known.unpack(packed, 512) == gguf.dequantize(packed, kind)).all()


WITH_IMPORTANCE = {
    "q8_0": "bf3305e3a04c6d837c0131cb7692700cf13fe00cd955f2e31fa9074e6badf238",
    "q6_K": "02ef6318b8f1b2537c0a14eb33262ae12fb40f384ed358fb5ea11b120cbf6a16",
    "q5_K": "5b06d3a7918101ea5cfd8237920d78fe1680698058b02244468b591f07473363",
    "q5_1": "c39715076bc77bcde90959929fa682f3cf0dc26201f6207f9930086b53eb0fd1",
    "q5_0": "3f1f4e8a4bb4fc898bbdd15f37dc9ce8bc2276d87b302bf6a25be6d4a6ff92f4",
    "q4_K": "b7de1deeb43abfa80ec8dea3a1ceca48bb498bf8c707780cf702ef8c1428f257",
    "q4_1": "a2c001e10a3f9a7749e0624b44b359ee511879779c4ffe9a3b0ffbc24dcdf82a",
    "q4_0": "cbb023b9150c91f1193ee73b87e909758b7444a5f2588b7a904ea53364a33729",
    "q3_K": "98ea6ee27d59b44b88c798c8dfbf496a1913996936eaca6b17dd747f60ca8fa2",
    "q2_K": "8bf82b01a05646d583b802e9add5598d73218a8061dccaea03927af0876fca59",
}
"""sha256 of what ggml's `ggml_quantize_chunk` makes of `whole_numbers`, importance given."""


def whole_numbers() -> tuple[Any, Any]:
    """Rows and their importance, the same on every machine."""
    random = np.random.default_rng(1)
    rows = random.integers(-1000, 1000, (16, 512)) * (1 + np.arange(16)[:, None])
    return rows.astype(np.float32) / 1024, random.integers(0, 100, 512).astype(np.float32)


@pytest.mark.parametrize("form", list(WITH_IMPORTANCE))
def test_importance_is_taken_as_ggml_does(form: str) -> None:
    rows, importance = whole_numbers()
    assert hashlib.sha256(GGUF[form].pack(rows, importance).tobytes()).hexdigest() == WITH_IMPORTANCE[form]


def test_an_interpreter_without_the_quantiser_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libgguf", None)
    with pytest.raises(UserError, match=r"package libgguf, which is not installed here; .*inlay\[gguf\]"):
        GGUF["q4_K"].pack(matrix(256))
