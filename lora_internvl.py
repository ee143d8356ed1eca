"""LoRA adapters on the vision tower and on the language model, through peft: put on, saved with the model, merged.

An adapted tower is a `peft.PeftModel` around the plain one, as in the published training code, so that its weights have
peft's names (`language_model.base_model.model.…`) in `save_pretrained`'s files too. The package peft is imported where
an adapter is put on, and nowhere else.
"""

import importlib
import importlib.util

from torch import nn

from .compat_internvl import refresh_tied_weights

# Linear layers with an adapter, by the end of their names: those of the published training code.
VISION_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_DENSE = (*_ATTENTION, "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
LLM_TARGETS = {
    "Qwen2ForCausalLM": _DENSE,
    "LlamaForCausalLM": _DENSE,
    "Qwen3ForCausalLM": _DENSE,
    "InternLM2ForCausalLM": ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    "Phi3ForCausalLM": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    # Not in the published code. Experts are linear layers in some releases of transformers and one block in others: the
    # attention is what all of them can adapt under the same names.
    "Qwen3MoeForCausalLM": _ATTENTION,
    "GptOssForCausalLM": _ATTENTION,
}
# Never quantised. Twice, since releases before 5.0 look for a part of a layer's name, later ones for its end.
ADAPTER_LAYERS = ("lora_A", "lora_B", "lora_A.default", "lora_B.default")
_DROPOUT = 0.05  # of the published code
# Tower -> field of the configuration with the rank, and with what differs from the published rule (only then there).
_FIELDS = {"vision_model": ("use_backbone_lora", "backbone_lora"), "language_model": ("use_llm_lora", "llm_lora")}


def without_adapters(tower):
    """The plain model inside an adapted tower, its adapted layers included; any other module as it is."""
    return tower.get_base_model() if hasattr(tower, "get_base_model") else tower


class LoraMixin:
    """What `InternVLChatModel` can do with adapters."""

    def wrap_backbone_lora(self, r: int = 128, lora_alpha=None, lora_dropout: float = _DROPOUT) -> None:
        """Puts LoRA adapters on the linear layers of the vision tower and freezes the tower's own weights.

        The projector and the other tower stay as they are: freeze them with `requires_grad_(False)` where they are not
        to be trained. The rank and whatever departs from the defaults go into the configuration, so that a saved model
        loads with its adapters. The answers do not change before the first step of training.

        Args:
            r: rank.
            lora_alpha: the adapter's output is scaled by `lora_alpha / r`; None means 2 r, the published rule.
            lora_dropout: in training, share of the adapter's inputs set to zero.

        Raises:
            ImportError: the package peft is missing.
            ValueError: a rank below 1, or the tower has adapters.
        """
        self._wrap("vision_model", r, lora_alpha, lora_dropout)

    def wrap_llm_lora(self, r: int = 128, lora_alpha=None, lora_dropout: float = _DROPOUT) -> None:
        """Puts LoRA adapters on the linear layers of the language model; otherwise as `wrap_backbone_lora`."""
        self._wrap("language_model", r, lora_alpha, lora_dropout)

    def merge_lora(self) -> None:
        """Adds the adapters to the weights they belong to and takes them off: both towers are plain models again, which
        save and load without peft. Does nothing without adapters. The merged weights stay frozen; quantised ones are
        rounded once more, which changes answers a little.

        Raises:
            ValueError: an adapter holds values that are not finite; that tower is left as it was.
        """
        for tower, fields in _FIELDS.items():
            module = getattr(self, tower)
            if without_adapters(module) is not module:
                module.disable_input_require_grads()
                module.state_dict()  # bitsandbytes puts 4-bit weights that have answered on a CPU back in order for it
                setattr(self, tower, module.merge_and_unload(safe_merge=True))
            setattr(self.config, fields[0], 0)
            if hasattr(self.config, fields[1]):
                delattr(self.config, fields[1])
        refresh_tied_weights(self)

    def _settle_loaded_adapters(self, missing_keys, unexpected_keys) -> None:
        """After loading: refuses weights that do not go with the configuration, which leave a tower random, and freezes
        what adapters freeze (5.0 and later make every loaded weight trainable).

        Raises:
            ValueError: adapters in the weights and none in the configuration, or the other way round.
        """
        for tower, (field, _) in _FIELDS.items():
            wrapped = f"{tower}.base_model.model."
            if any(name.startswith(wrapped) for name in missing_keys):
                raise ValueError(
                    f"the weights of {tower} do not have the LoRA adapters that {field}={getattr(self.config, field)} "
                    f"says: load them with {field}=0, and put new adapters on with wrap_backbone_lora or wrap_llm_lora"
                )
            if any(name.startswith(wrapped) for name in unexpected_keys):
                raise ValueError(f"the weights of {tower} have LoRA adapters: load them with {field}= their rank")
            if getattr(self.config, field):
                self._fit_to_quantized(tower)
                for name, parameter in getattr(self, tower).named_parameters():
                    parameter.requires_grad_(".lora_" in name)

    def _wrap_as_configured(self, towers=tuple(_FIELDS)) -> None:
        for tower in towers:
            rank, options = _FIELDS[tower]
            if getattr(self.config, rank):
                self._wrap(tower, getattr(self.config, rank), **getattr(self.config, options, {}))

    def _fit_to_quantized(self, tower: str) -> None:
        """Quantisation while loading replaces the linear layers inside peft's, which were made for plain ones: wraps
        the tower anew, so that each kind of layer gets peft's own for it, and hands the loaded adapters on."""
        adapted = getattr(self, tower)
        if all(type(part.base_layer) is nn.Linear for part in adapted.modules() if hasattr(part, "base_layer")):
            return
        loaded = {name: parameter.data for name, parameter in adapted.named_parameters() if ".lora_" in name}
        setattr(self, tower, adapted.unload())
        self._wrap_as_configured((tower,))
        for name, parameter in getattr(self, tower).named_parameters():
            if name in loaded:
                parameter.data = loaded[name]

    def _wrap(self, tower: str, r, lora_alpha=None, lora_dropout=_DROPOUT) -> None:
        rank_field, options_field = _FIELDS[tower]
        if isinstance(r, bool) or not isinstance(r, int) or r < 1:
            raise ValueError(f"the rank of LoRA adapters must be an integer of at least 1, got {r!r}")
        plain = getattr(self, tower)
        if without_adapters(plain) is not plain:
            raise ValueError(f"{tower} has LoRA adapters already: merge_lora() comes first")
        if importlib.util.find_spec("peft") is None:
            raise ImportError("LoRA adapters need peft: pip install 'internvl_chat[lora]'")
        peft = importlib.import_module("peft")
        options = {"lora_alpha": 2 * r if lora_alpha is None else lora_alpha, "lora_dropout": lora_dropout}
        if tower == "vision_model":
            where = {"target_modules": list(VISION_TARGETS)}
        else:
            targets = LLM_TARGETS[self.config.llm_config.architectures[0]]
            where = {"target_modules": list(targets), "task_type": "CAUSAL_LM"}
        for mark in ("is_loaded_in_8bit", "is_loaded_in_4bit"):  # peft asks the tower, loading marks the whole
            setattr(plain, mark, getattr(self, mark, False))
        adapted = peft.get_peft_model(plain, peft.LoraConfig(r=r, **options, **where))
        adapted.train(plain.training)  # the new layers come in training mode, with dropout
        adapted.enable_input_require_grads()  # checkpointed layers get no gradients from inputs without
        setattr(self, tower, adapted)
        setattr(self.config, rank_field, r)
        if options != {"lora_alpha": 2 * r, "lora_dropout": _DROPOUT}:
            setattr(self.config, options_field, options)
        refresh_tied_weights(self)
