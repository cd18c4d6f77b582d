"""The plugin that lets vLLM serve a child's folder: pyproject.toml names `register` under `vllm.general_plugins`.

vLLM calls it in each of its processes, the ones that load no model too, so it imports no model: vLLM is told where
the class stands and imports it when a child comes.
"""

ARCHITECTURE = "InlayForCausalLM"
"""What `architectures` in a child's config.json says."""


def register() -> None:
    """Make vLLM know the children's architecture and configuration; calling it again changes nothing."""
    from vllm import ModelRegistry

    from inlay.nas.modeling import register as register_with_transformers

    register_with_transformers()
    # Registered a second time it would be replaced by itself, with a warning.
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:InlayForCausalLM")
