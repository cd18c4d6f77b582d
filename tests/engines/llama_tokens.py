"""What llama.cpp makes of texts, in a process of its own, since it ends its process at a file that it does not like.

    python llama_tokens.py FILE.gguf < texts.json > tokens.json

Texts are a JSON list; for each come its ids and the text of the end token and these ids. The end token stands there
since the binding takes spaces from the beginning.
"""

import json
import sys

from cyllama.llama import llama_cpp


def main(file: str) -> None:
    llama_cpp.disable_logging()
    settings = llama_cpp.LlamaModelParams()
    model = llama_cpp.LlamaModel(file, settings)  # kept: its vocabulary lies within it
    vocab = model.get_vocab()
    answers = []
    for text in json.load(sys.stdin):
        ids = vocab.tokenize(text, True, True)
        answers.append([ids, vocab.detokenize([vocab.token_eos(), *ids], 4 * len(text) + 64, False, True)])
    stops = [token for token in range(vocab.n_vocab) if vocab.is_eog(token)]
    json.dump({"answers": answers, "stops": stops}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
