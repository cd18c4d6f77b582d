"""After `import inlay`, in any order with Transformers' own imports, its Auto classes make inlay models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOAD = """
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
made = AutoModelForCausalLM.from_config(config)
names = [f"{type(it).__module__}.{type(it).__name__}" for it in (config, model, made)]
assert names == [
    "inlay.nas.modeling.configuration_inlay.InlayConfig",
    "inlay.nas.modeling.modeling_inlay.InlayForCausalLM",
    "inlay.nas.modeling.modeling_inlay.InlayForCausalLM",
], names
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import inlay; from transformers import LlamaForCausalLM",
        pytest.param("from transformers import AutoModelForCausalLM; import inlay", marks=pytest.mark.slow),
        pytest.param("import inlay", marks=pytest.mark.slow),
        pytest.param("import inlay.nas.modeling.modeling_inlay", marks=pytest.mark.slow),
        pytest.param("import inlay; from transformers.modeling_utils import PreTrainedModel", marks=pytest.mark.slow),
        pytest.param("import inlay; from transformers import AutoTokenizer", marks=pytest.mark.slow),
        pytest.param("import inlay; from transformers.models.llama import modeling_llama", marks=pytest.mark.slow),
    ],
)
def test_orders_of_import(imports: str, tmp_path: Path, make_child: Any) -> None:
    make_child("llama", {0: {"attention": {"kind": "no_op"}}}).save_pretrained(tmp_path)
    subprocess.run([sys.executable, "-P", "-c", f"import sys; {imports}\n{LOAD}", str(tmp_path)], check=True)


def test_inlay_alone_imports_neither_torch_nor_transformers() -> None:
    check = "import sys, inlay; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", check], check=True)
