"""Rewrites GGUF files by llama.cpp's quantiser: `[[file in, file out, file type], ...]` as JSON on standard input."""

import json
import sys

from cyllama.llama import llama_cpp

llama_cpp.set_log_callback(lambda level, text: None)
llama_cpp.llama_backend_init()
for source, output, file_type in json.load(sys.stdin):
    how = llama_cpp.LlamaModelQuantizeParams()
    how.ftype, how.nthread = file_type, 1
    llama_cpp.model_quantize(source, output, how)
