"""A worker finds how much what a model says depends on how it is asked.

Shapes: V variations of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.continuing import greedy, model_of


@torch.inference_mode()
def prompt_sensitivity(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: ψ of each set of prompts that mean the same, for one model.

    Arguments: as `continue_prompts` has them, but `sets`, each a list of prompts, for `prompts`. `values["psi"]` has a
    number for each set.

    ψ is the mean over ordered pairs of prompts i ≠ j of |log P(y_j|x_i) - log P(y_j|x_j)| / L_j, where y_j is the
    model's own greedy answer of L_j tokens to x_j (POSIX, arXiv 2410.02185, equation 1).
    """
    model = model_of(arguments, context.scratch)
    found = []
    for number, prompts in enumerate(arguments["sets"], start=1):
        answers = greedy(model, prompts, arguments["tokens"], arguments["stops"])
        found.append(psi([log_probabilities(model, prompt, answers) for prompt in prompts], answers))
        context.progress(number / len(arguments["sets"]))
    return PieceOutput(values={"psi": found}, blobs={})


def psi(logs_VV: Sequence[Sequence[float]], answers: Sequence[Sequence[int]]) -> float:
    """Of one set: `logs_VV[i][j]` is log P(y_j|x_i)."""
    number = len(answers)
    apart = (
        abs(logs_VV[i][j] - logs_VV[j][j]) / len(answers[j]) for i in range(number) for j in range(number) if i != j
    )
    return sum(apart) / (number * (number - 1))


def log_probabilities(model: InlayForCausalLM, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
    """log P of each answer behind the prompt, in nats; what stands behind a shorter answer is not seen by it."""
    own: Any = model
    longest = max(map(len, answers))
    rows = [[*prompt, *answer, *[0] * (longest - len(answer))] for answer in answers]
    ids_VS = torch.tensor(rows, device=own.device)
    logits_VS = own(ids_VS, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1].double()
    seen = logits_VS.log_softmax(-1).gather(-1, ids_VS[:, -longest:, None])[..., 0]
    return [float(row[: len(answer)].sum()) for row, answer in zip(seen, answers, strict=True)]
