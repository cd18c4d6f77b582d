"""Measures a trained embedded parent and writes its model card.

    python -m inlay.nas.embedded.card FOLDER --minutes 67

Every figure in the card is computed here from the folder's own files and the standard library of the running Python;
only the training time is given.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor

from inlay.nas.embedded.corpus import documents, modules
from inlay.nas.embedded.evaluate import byte_count, model_bits, ngram_bits
from inlay.nas.embedded.tokenizer import tokenize
from inlay.nas.embedded.train import Recipe

SLICE_MODULES: Final = ("graphlib.py", "textwrap.py")
"""Held-out modules whose own figure a test can recompute in seconds."""
ORDER: Final = 5
_PROMPT: Final = (
    "class Counter:\n    def __init__(self, start=0):\n        self.value = start\n\n    def increment(self"
)
_TITLES: Final = {
    "bits_per_byte": "Bits per byte, held-out modules",
    "ngram_bits_per_byte": f"Bits per byte of a modified Kneser-Ney {ORDER}-gram model",
    "slice_bits_per_byte": f"Bits per byte, {' and '.join(SLICE_MODULES)} alone",
}


@dataclass(frozen=True)
class Figures:
    """What the card states, besides the recipe."""

    parameters: int
    """Numbers in the model, tied ones once."""
    weights_bytes: int
    """Size of `model.safetensors`."""
    train_bytes: int
    """UTF-8 length of the text trained on."""
    train_tokens: int
    """Its tokens, one EOS a document included."""
    held_out_bytes: int
    """UTF-8 length of the held-out text."""
    held_out_tokens: int
    """Its tokens, one EOS a document included."""
    bits_per_byte: float
    """Of the model, over the held-out text in sequences of the training length."""
    ngram_bits_per_byte: float
    """Of the n-gram model of the same training tokens, over the same held-out tokens."""
    slice_bits_per_byte: float
    """Of the model, over `SLICE_MODULES`."""
    sample: str
    """A continuation drawn from the model."""

    @property
    def gain(self) -> float:
        """Share by which the model needs fewer bits than the n-gram model."""
        return 1 - self.bits_per_byte / self.ngram_bits_per_byte


def measure(folder: Path, recipe: Recipe) -> Figures:
    """Loads the model of `folder` with Transformers and computes every figure, in a minute or two on one core."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    train_texts, held_out_texts = documents("train"), documents("held_out")
    train_tokens, held_out_tokens = tokenize(tokenizer, train_texts), tokenize(tokenizer, held_out_texts)
    held_out_bytes = byte_count(held_out_texts)
    vocabulary = tokenizer.get_vocab_size()
    return Figures(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_bytes=(folder / "model.safetensors").stat().st_size,
        train_bytes=byte_count(train_texts),
        train_tokens=sum(map(len, train_tokens)),
        held_out_bytes=held_out_bytes,
        held_out_tokens=sum(map(len, held_out_tokens)),
        bits_per_byte=_bits(model, held_out_tokens, recipe.length) / held_out_bytes,
        ngram_bits_per_byte=ngram_bits(train_tokens, held_out_tokens, vocabulary, ORDER) / held_out_bytes,
        slice_bits_per_byte=slice_bits_per_byte(model, tokenizer, recipe.length),
        sample=_sample(model, AutoTokenizer.from_pretrained(folder)),
    )


def slice_bits_per_byte(model: Any, tokenizer: Tokenizer, length: int) -> float:
    """The model's bits per byte over `SLICE_MODULES`, in sequences of `length` tokens."""
    places = [modules("held_out").index(module) for module in SLICE_MODULES]
    texts = [documents("held_out")[place] for place in places]
    return _bits(model, tokenize(tokenizer, texts), length) / byte_count(texts)


def write_card(folder: Path, figures: Figures, recipe: Recipe, minutes: float) -> None:
    """Writes `README.md` into the folder."""
    text = _TEXT.format(
        front=yaml.safe_dump(_front_matter(figures), sort_keys=False, allow_unicode=True).strip(),
        recipe=yaml.safe_dump(asdict(recipe), sort_keys=False).strip(),
        figures=figures,
        recipe_tokens=recipe.tokens,
        passes=recipe.tokens / figures.train_tokens,
        shape=recipe.shape,
        length=recipe.length,
        order=ORDER,
        minutes=minutes,
        python=platform.python_version(),
        train_modules=len(modules("train")),
        held_out_modules=len(modules("held_out")),
        slice=" and ".join(f"`{module}`" for module in SLICE_MODULES),
        per_token=figures.bits_per_byte * figures.held_out_bytes / figures.held_out_tokens,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def read_figures(folder: Path) -> dict[str, float]:
    """The measured figures of a folder's card, by metric name."""
    front = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    return {metric["type"]: metric["value"] for metric in front["model-index"][0]["results"][0]["metrics"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: measures, writes the card and prints the two figures."""
    parser = argparse.ArgumentParser(description="Measure an embedded parent and write its model card.")
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("--minutes", type=float, required=True, help="how long the training took")
    options = parser.parse_args(arguments)
    recipe = Recipe()
    figures = measure(options.folder, recipe)
    write_card(options.folder, figures, recipe, options.minutes)
    print(
        f"{figures.bits_per_byte:.4f} bits per byte; {ORDER}-gram {figures.ngram_bits_per_byte:.4f}: "
        f"{figures.gain:.1%} below"
    )


def _bits(model: Any, documents_tokens: Sequence[Tensor], length: int) -> float:
    return model_bits(lambda tokens_BS: model(tokens_BS).logits, torch.cat(list(documents_tokens)), length)


def _sample(model: Any, tokenizer: Any) -> str:
    torch.manual_seed(0)
    inputs = tokenizer(_PROMPT, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, do_sample=True, temperature=0.6, top_k=40, max_new_tokens=160)
    text: str = tokenizer.decode(ids[0], skip_special_tokens=True)
    return text


def _front_matter(figures: Figures) -> dict[str, Any]:
    metrics = [
        {"type": name, "name": title, "value": round(getattr(figures, name), 4)} for name, title in _TITLES.items()
    ]
    dataset = {"name": "Python standard library, held-out modules", "type": "source-code"}
    result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}
    return {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["code", "python", "tiny"],
        "model-index": [{"name": "pystdlib", "results": [result]}],
    }


_TEXT: Final = """\
---
{front}
---

# pystdlib

A small Llama that writes Python, trained on the source text of the Python standard library. It ships with inlay so that
a search, a test or a demonstration needs no download. It is a parent to take apart, not an assistant.

| | |
|---|---|
| parameters | {figures.parameters:,} (tied embeddings counted once), {figures.weights_bytes:,} bytes in bfloat16 |
| layers | {shape.layers} |
| width | {shape.hidden}, SwiGLU {shape.ffn} |
| attention | {shape.heads} query heads, {shape.kv_heads} key/value heads of {shape.head_size} |
| tokens | byte-level BPE, {shape.vocabulary:,}; Llama 3's pre-tokenizer; every text encodes and decodes to itself |
| sequence | trained on {length} tokens that open with `<s>`; `</s>` ends a document; {shape.positions:,} positions |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from inlay.nas.embedded import embedded_parent

folder = embedded_parent("pystdlib")
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
```

## Quality

Bits per byte of text on the held-out modules, each in sequences of {length} tokens that open with `<s>`:

| model | bits per byte |
|---|---|
| this model | {figures.bits_per_byte:.4f} ({per_token:.3f} bits per token) |
| interpolated modified Kneser-Ney, order {order}, same training tokens | {figures.ngram_bits_per_byte:.4f} |

That is {figures.gain:.1%} below the n-gram model, whose contexts reach over the cuts between sequences.
On {slice} alone: {figures.slice_bits_per_byte:.4f}.

A sample (temperature 0.6, top 40, seed 0; the prompt is the text up to `def increment(self`):

```python
{figures.sample}
```

It knows the shape of Python, its idioms and the standard library's habits. It does not know what programs do.

## Text

Fixed lists of modules that CPython 3.11 to 3.14 have (`nas/embedded/corpus.py`), read from Python {python}; the text
differs a little between versions. Standard library: Python Software Foundation License.

| split | modules | bytes | tokens |
|---|---|---|---|
| train | {train_modules} | {figures.train_bytes:,} | {figures.train_tokens:,} |
| held out | {held_out_modules} | {figures.held_out_bytes:,} | {figures.held_out_tokens:,} |

The tokenizer has seen the training split only. The held-out modules come from the same packages as the others.

## Recipe

{recipe_tokens:,} tokens ({passes:.1f} passes over the text) in {minutes:.0f} minutes on one core of a server processor,
float32: Muon for the layers' matrices, Adam for the embedding and the norms; the rates rise, stay and fall to 0.

```yaml
{recipe}
```

Again, from the same Python version:

    python -m inlay.nas.embedded.train --output FOLDER --state STATE
    python -m inlay.nas.embedded.card FOLDER --minutes MINUTES

The training can be killed and started again with the same command; the figures above are printed by the second one.
"""


if __name__ == "__main__":
    main()
