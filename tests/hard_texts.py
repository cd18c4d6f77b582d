"""A thousand and some texts that tokenizers find hard, the same every time."""

import random

BY_HAND = [
    "", "a", " ", "  ", "   a", "a  b   c    d", " leading", "trailing ", "trailing  ", "\n",
    "\n\n", "a\nb", "a\n\n\nb", "\t", "\ta\tb\t\t", " \n ", "a \n b", "\r\n", "a\r\nb\r\n",
    "Hello, world!", "The capital of France is", "it's", "IT'S",
    "I'll we've you're he'd I'm don't DON'T", "'s 't 'x", "''", "x'y'z", "1", "12", "123", "1234",
    "12345678901234567890", "3.14159", "1,000,000", "0x1F", "v1.2.3-rc4", "a1b2c3", "½ ⅓ Ⅳ ②",
    "१२३", "٣٤٥", "αβγ ΑΒΓ", "Привет, мир!", "здравствуйте", "你好,世界", "日本語のテキスト", "한국어 텍스트", "ไทย",
    "עברית", "العربية", "हिन्दी भाषा", "café naïve", "e\u0301 composed é", "Zürich straße ſ", "🙂",
    "🙂🙃", "👨‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "👍🏽", "text 🙂 between 🎉 emoji", "𝕳𝖊𝖑𝖑𝖔", "\u200b\u200d",
    "\u00a0nbsp\u00a0", "\u3000wide\u3000space", "\ufeffbom", "…—–‘’“”", "€£¥$", "∑∫√∞", "▁ ▁▁ a▁b",
    "Ġ Ċ", "<0x0A>", "<unk>", "<s>", "</s>", "<s>a</s>", "a<s> b</s>c", "x <unk> y",
    "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n", "def f(x):\n    return x + 1\n",
    "if a:\n\tb = {'k': [1, 2]}\n\telse_ = None", "for (int i = 0; i < 10; ++i) { a[i] = i * 2; }",
    "SELECT * FROM t WHERE a='b';", "https://example.org/a?b=c&d=%20#e", "user@example.org",
    "C:\\path\\to", "`code` **bold** _it_", "{{ template }}", "#!/bin/sh", "a" * 300, "ab " * 100,
    " " * 70, "\n" * 40, "-" * 80, "=" * 33, "!?!?!?", "...", "(((())))", "\x00\x01\x7f", "\x1b[0m",
    "\\n \\t",
]  # fmt: skip
_PARTS = [
    " ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\r\n", "the", "The", " and", "stories",
    "once upon a time", "ing", "self.", "import os", "def ", "0", "7", "42", "2024", "'s", "'ll",
    "'RE", ",", ".", "!", "--", "()", "[]", "{", "}", "::", "==", "é", "ü", "ß", "中", "文字", "かな",
    "한", "글", "д", "ы", "ع", "न", "🙂", "🎉", "👩‍💻", "—", "“", "”", "€", "½", "<s>", "</s>", "<unk>",
    "▁", "\u00a0", "\u3000", "\u200d", "_", "@", "#", "%", "~", "^", "|", "\\", "/", "A", "Z", "qu",
    "ez", "Mr", "Dr.", "www",
]  # fmt: skip


def texts(seed: int = 0, number: int = 1100) -> list[str]:
    """The ones by hand, then random ones of a few parts."""
    draw = random.Random(seed)
    return BY_HAND + ["".join(draw.choices(_PARTS, k=draw.randint(1, 14))) for _ in range(number - len(BY_HAND))]
