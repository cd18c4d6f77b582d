"""What MLflow runs of a logged child: prompts in, what the child adds to each out.

This file travels with the model, and MLflow runs it where that is loaded; inlay must be installed there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.modeling import InlayForCausalLM

PROMPT, TEXT, NEW_TOKENS = "prompt", "text", "max_new_tokens"
FEW_TOKENS = 64


class Child(PythonModel):
    """The likeliest continuation of each prompt, on a GPU where there is one."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the weights, which are among the artifacts or where the search kept them.

        Raises:
            UserError: they are in neither place.
        """
        folder = Path(context.artifacts["child"])
        if not any(folder.glob("*.safetensors")):
            kept_in = str((context.model_config or {}).get("kept_in"))
            folder = Path(kept_in)
            if not any(folder.glob("*.safetensors")):
                raise UserError(
                    f"the weights of this child were too large for MLflow's store and are not in {kept_in} any more; "
                    "load it where that folder is, or search with `tracking: {register: NAME}`, which stores them"
                )
        self.tokenizer = open_parent(folder).tokenizer()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = InlayForCausalLM.from_pretrained(folder)
        self.model = model.eval().to(device)

    def predict(
        self, context: PythonModelContext, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """The column `text` for the column `prompt`, where what came as `{"inputs": {"prompt": [...]}}` is one cell."""
        tokens = int((params or {}).get(NEW_TOKENS, FEW_TOKENS))
        prompts = [each for cell in model_input[PROMPT] for each in (cell if isinstance(cell, list) else [cell])]
        return pandas.DataFrame({TEXT: [self._continued(prompt, tokens) for prompt in prompts]})

    def _continued(self, prompt: str, tokens: int) -> str:
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]], device=self.model.device)
        with torch.inference_mode():
            found = self.model.generate(ids, max_new_tokens=tokens, do_sample=False)
        return str(self.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


set_model(Child())
