"""The DeciLM folder (model type `nemotron-nas`) for one of the programs in deci_consumers.py.

Weights under the names that the program looks for, a config.json with its sizes, a configuration class for those that
read it through Transformers, and the tokenizer, model card and recipe of every export.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inlay.distill.tensor_files import MOST_FILE_BYTES
from inlay.nas.errors import UserError
from inlay.nas.export.card import card
from inlay.nas.export.deci_consumers import CONSUMERS, Child, Consumer
from inlay.nas.export.folder import write_companions, written_whole
from inlay.nas.export.tensors import copy_tensors
from inlay.nas.families import Parent
from inlay.nas.job import Job
from inlay.nas.modeling.subblock_inlay import SLOTS
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.tables.architecture import Blocks
from inlay.nas.variants.entries import structures_of
from inlay.nas.workspace import Workspace

_CODE: Final = "configuration_deci.py"


def check_deci(parent: Parent, architecture: Blocks, consumer: str) -> None:
    """Raises UserError naming everything in a child that the consumer of that name cannot run."""
    known = CONSUMERS[consumer]
    problems = known.problems(_child(parent, architecture))
    if len(problems) == 1:
        raise UserError(f"--for {consumer}: {known.title} cannot run this child: {problems[0]}")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"--for {consumer}: {known.title} cannot run this child, for {len(problems)} reasons:{lines}")


def write_deci_folder(
    place: Workspace,
    parent: Parent,
    model: TrainedModel,
    output: Path,
    evaluation: Mapping[str, Any],
    job: Job,
    consumer: str,
    most_shard_bytes: int = MOST_FILE_BYTES,
) -> Path:
    """Writes a child for the consumer of that name, whole or not at all.

    The weights are copied tensor by tensor from where the workspace keeps them, into files of at most
    `most_shard_bytes`.

    Raises:
        UserError: the consumer cannot run the child.
    """
    check_deci(parent, model.architecture, consumer)
    known = CONSUMERS[consumer]
    with written_whole(output) as folder:
        text = json.dumps(deci_config(parent, model.architecture, known), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")
        if known.reads_by_transformers:
            shutil.copyfile(Path(__file__).with_name(_CODE), folder / _CODE)
        write_companions(folder, parent, model, card(evaluation, job, known.name, _use(known)), job)
        copy_tensors(ModelFiles(place.store, model.blob), folder, known.tensor_name, most_shard_bytes)
    return output


def deci_config(parent: Parent, architecture: Blocks, consumer: Consumer) -> dict[str, Any]:
    """The consumer's config.json of a child that it can run."""
    shape, config = parent.shape, parent.config
    blocks = _child(parent, architecture).blocks
    rope = dict(config.rope_parameters or {})
    rope_theta = rope.pop("rope_theta", None)
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "block_configs": [{slot: consumer.choice(slot, block[slot], shape) for slot in SLOTS} for block in blocks],
        "hidden_size": shape.hidden,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": shape.q_heads,
        "head_dim": shape.head_dim,
        # By layer, in block_configs; these are what their readers take for "look there".
        "num_key_value_heads": None,
        "intermediate_size": None,
        "attention_bias": shape.o_bias,
        "mlp_bias": shape.mlp_bias,
        "hidden_act": config.base["hidden_act"],
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope_theta,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "max_position_embeddings": shape.max_positions,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "initializer_range": config.initializer_range,
        "use_cache": config.use_cache,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        # The name that Transformers 4 has for it, and 5 reads.
        "torch_dtype": shape.dtype,
        # Where nobody needs the class, naming it makes whoever loads the tokenizer ask whether to trust its code.
        **({"auto_map": {"AutoConfig": "configuration_deci.DeciConfig"}} if consumer.reads_by_transformers else {}),
        **consumer.values(shape),
    }


def _child(parent: Parent, architecture: Blocks) -> Child:
    rope = parent.config.rope_parameters or {}
    return Child(
        shape=parent.shape,
        blocks=structures_of(parent.shape, architecture),
        activation=str(parent.config.base["hidden_act"]),
        rope_type=str(rope.get("rope_type", "default")),
    )


def _use(consumer: Consumer) -> list[str]:
    return [
        f"## Serve it with {consumer.title}",
        "",
        "```console",
        *(f"$ {command}" for command in consumer.serve),
        "```",
        "",
        f"A DeciLM model with the sizes that {consumer.title} reads; export the child again for another program.",
    ]
