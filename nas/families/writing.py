"""What a model is asked and what it writes: a prompt's tokens, where texts end, and how tokens behind a prompt read."""

import json
from collections.abc import Sequence
from typing import Any

from inlay.nas.families.parent import Parent


def stops_of(parent: Parent) -> frozenset[int]:
    """Tokens that end a text: generation_config.json's, else the model's, and the tokenizer's."""
    path = parent.folder / "generation_config.json"
    given = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    if given is None:
        given = parent.config.eos_token_id
    listed = given if isinstance(given, list) else [given]
    return frozenset(token for token in (*listed, parent.tokenizer().eos_token_id) if token is not None)


def added_text(tokenizer: Any, prompt: Sequence[int], added: Sequence[int]) -> str:
    """The text of tokens behind a prompt: by themselves they may lack the space that they begin with."""
    before, whole = (plain_text(tokenizer, ids) for ids in (prompt, [*prompt, *added]))
    return whole.removeprefix(before)


def plain_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens without the special ones."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def prompt_ids(tokenizer: Any, prompt: str, *, templated: bool) -> list[int]:
    """The tokens of a prompt to complete or, `templated`, of a chat whose user says it."""
    if not templated:
        return list(tokenizer(prompt, verbose=False)["input_ids"])
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
