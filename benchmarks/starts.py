"""Where linear variants start: the ridge solution on X'X and X'Y against the paper's product of matrices.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/starts.py [--parent stories3M]

The figure is the relative error of the update on text that the sums have not seen; a no-op is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import torch
from machine import footer

from inlay.distill.corpus import Corpus
from inlay.distill.records import Records, contents
from inlay.distill.text import pack, token_lists
from inlay.kernels import update_mse
from inlay.nas.families import open_parent
from inlay.nas.modeling import Ends, build_layer, make_context
from inlay.nas.variants import Place, parse_variant
from inlay.nas.variants.linear import linear_from_products
from inlay.nas.variants.statistics import Products, gather

LENGTH, BATCH = 256, 16


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="stories3M")
    parser.add_argument("--tokens", type=int, default=64_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/starts.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    parent = open_parent(Path(os.environ["INLAY_PARENTS"]) / options.parent)
    (text,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
    corpus = Corpus(text, "<|endoftext|>", Records(None, contents))
    index = corpus.index()
    documents = corpus.texts(index, np.arange(len(index.places_N4)))
    tokens = options.tokens + 2 * BATCH * LENGTH
    ids = torch.from_numpy(pack(token_lists(documents, parent.tokenizer()), LENGTH, tokens=tokens))
    ids = ids.long()[: len(ids) // BATCH * BATCH].reshape(-1, BATCH, LENGTH)
    hidden = list(Ends(parent.config, parent.ends_state(), torch.float32).embed(ids))
    shape = parent.shape
    rows = []
    for index in range(shape.num_layers):
        state = parent.layer_state(index, torch.float32)
        entries = [shape.parent_entry(index, slot) for slot in ("attention", "ffn")]
        layer = build_layer(parent.config, index, *entries, state, torch.float32)
        context = make_context(parent.config, BATCH, LENGTH, torch.float32, "cpu", [entries[0]])
        total, outputs = None, []
        for batch in hidden[:-2]:
            sums, output = gather(layer, batch, context, [Products("attention"), Products("ffn")])
            total = sums if total is None else total + sums
            outputs.append(output)
        found = [index]
        for slot in ("attention", "ffn"):
            starts = {
                "ridge": parse_variant(f"{slot}:linear").start(shape, index, state, total),
                "products": linear_from_products(Place(shape, index, slot), state),
            }
            for start in starts.values():
                attention, ffn = ({"kind": "linear"}, None) if slot == "attention" else (None, {"kind": "linear"})
                linear = build_layer(parent.config, index, attention, ffn, start, torch.float32)
                errors = []
                for batch in hidden[-2:]:
                    if slot == "attention":
                        errors.append(
                            update_mse(linear.attention_update(batch, context), layer.attention_update(batch, context))
                        )
                    else:
                        middle = batch + layer.attention_update(batch, context)
                        errors.append(update_mse(linear.ffn_update(middle), layer.ffn_update(middle)))
                found.append(float(torch.stack(errors).mean()))
        rows.append(found)
        hidden = [*outputs, *(layer(batch, context) for batch in hidden[-2:])]
    lines = [
        f"# Starts of linear variants, {options.parent}",
        "",
        f"Relative error of the update on unseen text, sums over {options.tokens:,} tokens; a no-op is 1.",
        "",
        "| layer | attention: ridge | attention: W_o·W_v | ffn: ridge | ffn: W_down·W_up |",
        "|---|---|---|---|---|",
        *("| {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} |".format(*row) for row in rows),
        "",
        f"Written by `benchmarks/starts.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
