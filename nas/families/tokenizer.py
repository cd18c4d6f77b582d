"""Whether a parent's tokenizer belongs to its embedding, and loading it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.errors import UserError
from inlay.nas.families.remote_code import tokenizer_code

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES: Final = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files that decide how text becomes tokens, sorted; a folder has some of them."""

_VOCABULARIES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_tokenizer_files(folder: Path, vocab: int) -> None:
    """Refuse a folder without a tokenizer, and a tokenizer.json with ids that the embedding of `vocab` rows lacks.

    Raises `UserError`. Other tokenizer files are checked when the tokenizer is loaded, by `check_ids`.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise UserError(
            f"parent: the folder `{folder}` has no tokenizer (none of {', '.join(_VOCABULARIES)}); "
            "put the model's tokenizer files beside its weights."
        )
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        ids = _ids(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"parent: `{path}` is not a tokenizer of the tokenizers library; copy it again from the model's source."
        ) from None
    check_ids(ids, vocab, folder)


def check_ids(ids: dict[int, str], vocab: int, folder: Path) -> None:
    """Raise `UserError` unless every id that the tokenizer can give is a row of the embedding."""
    if not ids:
        raise UserError(f"parent: the tokenizer in `{folder}` has no tokens; put the model's own there.")
    largest, smallest = max(ids), min(ids)
    if largest < vocab and smallest >= 0:
        return
    worst = largest if largest >= vocab else smallest
    raise UserError(
        f"parent: the tokenizer in `{folder}` does not match the model: its token `{ids[worst]}` has the id {worst}, "
        f"and the embedding has {vocab} rows (`vocab_size` in config.json); put the model's own tokenizer there."
    )


def load_tokenizer(folder: Path, vocab: int) -> "PreTrainedTokenizerBase":
    """The tokenizer in `folder`. Raises `UserError` when it cannot be loaded or has ids that `vocab` rows lack."""
    from transformers import AutoTokenizer

    trusted = bool(tokenizer_code(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # the tokenizers library raises bare `Exception` for a file it cannot parse
        reason = " ".join(str(error).split())
        raise UserError(
            f"parent: the tokenizer in `{folder}` cannot be loaded ({reason}); put the model's own there."
        ) from None
    check_ids({place: token for token, place in tokenizer.get_vocab().items()}, vocab, folder)
    return tokenizer


def _ids(tokenizer: dict[str, Any]) -> dict[int, str]:
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):
        ids = {place: str(token) for place, (token, _) in enumerate(vocabulary)}
    else:
        ids = {int(place): str(token) for token, place in vocabulary.items()}
    return ids | {int(token["id"]): str(token["content"]) for token in tokenizer.get("added_tokens") or []}
