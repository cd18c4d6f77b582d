"""Makes Transformers' Auto classes know model type "inlay", also while Transformers is still being imported.

Its auto modules are imported in the middle of its model base classes, which our model needs. So the configuration is
registered as it is, and for the model a stand-in, which imports the model when one is asked for. Nothing of
Transformers is imported here before that.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def register() -> None:
    """Make `from_pretrained` of the Auto classes know model type "inlay"; calling it again changes nothing."""
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from .configuration_inlay import InlayConfig

    InlayOnDemand.config_class = InlayConfig
    AutoConfig.register("inlay", InlayConfig, exist_ok=True)
    AutoModelForCausalLM.register(InlayConfig, InlayOnDemand, exist_ok=True)


class InlayOnDemand:
    """Stands in for InlayForCausalLM until its first use, which makes that model and registers it."""

    config_class: Any = None

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As InlayForCausalLM.from_pretrained."""
        return _model_class().from_pretrained(*arguments, **options)

    @classmethod
    def _from_config(cls, *arguments: Any, **options: Any) -> Any:
        return _model_class()._from_config(*arguments, **options)


def _model_class() -> type[PreTrainedModel]:
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from .modeling_inlay import InlayForCausalLM

    AutoModelForCausalLM.register(InlayForCausalLM.config_class, InlayForCausalLM, exist_ok=True)
    return InlayForCausalLM
