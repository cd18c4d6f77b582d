"""Parents and text for all tests: pretrained ones from the environment, else what ships, and tiny random ones."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from inlay.nas.embedded import corpus, embedded_parent

TinyParent = Callable[..., Path]

# With one thread for each product, nothing spins while it waits for a core that others have; processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests neither take the times that this machine keeps nor add to them; processes inherit it, as they do the threads.
_MEASURED = tempfile.TemporaryDirectory(prefix="inlay-measured-", ignore_cleanup_errors=True)
os.environ["INLAY_MEASURED"] = _MEASURED.name

# `pytest --hypothesis-profile release`: properties are tried on five times as many examples.
settings.register_profile("release", max_examples=500)

_LONGEST_FIRST = ("stages", "cluster", "solver", "distill", "cli", "embedded")
_SERVICES = ("test_guide.py", "test_mlflow_auth.py", "test_services.py", "test_several.py", "test_verbs.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n 3` one process takes the folder of searches, whose files share what they start, and one the files
    whose services have ports of their own; the third takes whatever file is left, and so do all in the end."""
    from xdist.scheduler import LoadScopeScheduling

    class FoldersFirst(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::")[0])
            if file.parent.name == "stages":
                return "stages"
            return "services" if file.name in _SERVICES else str(file)

    config.option.loadscopereorder = False  # by the number of tests, which tells little of their time
    return FoldersFirst(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In one of several processes, what takes longest comes first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(item.path.parent.name))


def _rank(folder: str) -> int:
    return _LONGEST_FIRST.index(folder) if folder in _LONGEST_FIRST else len(_LONGEST_FIRST)


@pytest.fixture(scope="session")
def parents_dir() -> Path:
    """A folder of trained parents, one folder each: `INLAY_PARENTS`, else the ones that ship with inlay."""
    given = os.environ.get("INLAY_PARENTS")
    return Path(given) if given else embedded_parent("pystdlib").parent


@pytest.fixture(scope="session")
def trained_parent(parents_dir: Path) -> Path:
    """The smallest trained parent."""
    weights = sorted(parents_dir.glob("*/model.safetensors"), key=lambda path: path.stat().st_size)
    return weights[0].parent


@pytest.fixture(scope="session")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """`mlflow_db(folder)`: the URI of an empty database `mlflow.db` there, unless there is one already.

    A copy of one that MLflow has made: its migrations take a second and a half each time.
    """
    made = tmp_path_factory.mktemp("mlflow") / "mlflow.db"

    def copied(folder: Path) -> str:
        if not made.exists():
            from mlflow import MlflowClient

            MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments()
        if not (folder / made.name).exists():
            shutil.copy(made, folder)
        return f"sqlite:///{folder / made.name}"

    return copied


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real GGUF file, `INLAY_SMOLLM2`: docs/gguf.md says where it comes from. Without it a test is skipped."""
    given = os.environ.get("INLAY_SMOLLM2")
    if given is None:
        pytest.skip("INLAY_SMOLLM2 names no GGUF file")
    return Path(given)


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `.txt` files in the product's document format: `INLAY_TEXT`, else the standard library's source."""
    given = os.environ.get("INLAY_TEXT")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("text")
    for split in ("train", "held_out"):
        (folder / f"{split}.txt").write_text(corpus.text(split), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_parent(tmp_path_factory: pytest.TempPathFactory) -> TinyParent:
    """`tiny_parent(family, seed=0, dtype="float32", max_shard_size="1GB", **config)` gives a random parent's folder.

    Layers 3, width 32, 4 query and 2 key/value heads, ffn 48, vocabulary 288, context 64. Llama is tied; Mistral slides
    over 24 tokens; Qwen2 is untied; the heads of Qwen3 are 12 wide; Mixtral and Qwen3-MoE have 4 experts, 2 active, the
    latter not in layer 1. Norms and biases are random too. Made once a
    session for each call: copy the folder before changing it.
    """
    made: dict[str, Path] = {}

    def make(family: str, *, seed: int = 0, dtype: str = "float32", max_shard_size: str = "1GB", **config: Any) -> Path:
        key = json.dumps([family, seed, dtype, max_shard_size, config], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"tiny_{family}")
            _write(made[key], family, seed, dtype, max_shard_size, config)
        return made[key]

    return make


_COMMON = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 288,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {"head_dim": 12, "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 12,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
    },
}


def _write(folder: Path, family: str, seed: int, dtype: str, max_shard_size: str, config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(family, **{**_COMMON, **_OWN[family], **config})
    model = AutoModelForCausalLM.from_config(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    """One token a byte behind three special ones, 259 in all; BOS opens a text."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
