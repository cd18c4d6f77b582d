"""Model folders as GGUF files, laid out as llama.cpp's own are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import load_file
from transformers import AutoConfig

from inlay.nas.engines.gguf import add_fields, tokenizer_metadata

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    folder: Path, path: Path, kind: str = "F32", edit: Callable[[GGUFWriter, dict[str, Any]], object] | None = None
) -> Path:
    """Write the model of a folder with its matrices as `kind`, its vectors as F32.

    `edit` may change the writer's fields and the tensors, arrays by their names in the file, before they are written.
    """
    config = AutoConfig.from_pretrained(folder).to_dict()
    arch = "llama" if config["model_type"] == "mistral" else config["model_type"]
    heads, head_dim = config["num_attention_heads"], config.get("head_dim")
    writer = GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config["model_type"] == "mistral" and config["sliding_window"]:
        writer.add_sliding_window(config["sliding_window"])
    add_fields(writer, tokenizer_metadata(folder, config["vocab_size"]))
    tensors: dict[str, Any] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        numbers = tensor.to(torch.float32).numpy()
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            size = head_dim or config["hidden_size"] // heads
            # Of each head, a number of the first half beside its partner of the second.
            numbers = numbers.reshape(-1, 2, size // 2, *numbers.shape[1:]).swapaxes(1, 2).reshape(numbers.shape)
        tensors[name_in_file(name)] = numbers
    if edit:
        edit(writer, tensors)
    for name, numbers in tensors.items():
        stored = GGMLQuantizationType[kind if numbers.ndim > 1 else "F32"]
        writer.add_tensor(name, quantize(np.ascontiguousarray(numbers), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def name_in_file(name: str) -> str:
    """`model.layers.1.mlp.up_proj.weight` as `blk.1.ffn_up.weight`."""
    module, _, part = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{part}"
    layer, local = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[local]}.{part}"
