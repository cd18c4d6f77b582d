"""A small tokenizer of SentencePiece's kind, learned on the spot."""

import json
from typing import Any

from hard_texts import texts
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers


def like_sentencepiece() -> dict[str, Any]:
    """A tokenizer.json that falls back to bytes, with every pair that makes a token, as SentencePiece's models give."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text.replace("\0", "") for text in texts(1)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    described: dict[str, Any] = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    vocab = described["model"]["vocab"]
    described["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for token in (left + right for left, right in described["model"]["merges"])
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return described
