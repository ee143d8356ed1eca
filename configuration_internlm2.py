"""The configuration of the InternLM2 language model, as published inside InternVL checkpoints.

Knows the fields, their defaults and their limits; knows nothing of tensors.
"""

from transformers import PretrainedConfig

ROPE_TYPES = ("linear", "dynamic")
_NO_ROPE_SCALING = (None, "default")


class InternLM2Config(PretrainedConfig):
    """Fields of an InternLM2 decoder, under the names of the published `config.json` (`llm_config`).

    Args:
        vocab_size: rows of the embedding and of the output head.
        hidden_size: width of the residual stream; a multiple of `num_attention_heads`.
        intermediate_size: width inside the gated feed-forward block.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads, a divisor of `num_attention_heads`; `None` means one per query head.
        hidden_act: name of the gate's activation.
        max_position_embeddings: positions seen in training; dynamic rotary scaling starts beyond it.
        initializer_range: standard deviation of fresh weights.
        rms_norm_eps: epsilon of the RMS norms.
        use_cache: whether `forward` returns its key/value cache.
        pad_token_id, bos_token_id, eos_token_id: token ids.
        tie_word_embeddings: whether the output head is the embedding matrix.
        bias: whether the attention projections have a bias.
        rope_theta: base of the rotary frequencies.
        rope_scaling: `None`, or `{"type": "linear" | "dynamic", "factor": float >= 1}`; the key may be `rope_type`.
        rope_parameters: the same two in the single dictionary of newer releases; it wins over them when given.
        head_dim: accepted for files that spell it out; must be `hidden_size / num_attention_heads`.

    `attn_implementation` is the standard switch of transformers; published files carry the value that the training
    run used. `pretraining_tp` and any other key are kept as they come and have no effect.

    Raises:
        ValueError: a field is out of range; the message names the value and what is allowed.
    """

    model_type = "internlm2"
    keys_to_ignore_at_inference = ["past_key_values"]

    # Newer base classes define `rope_scaling` as a property that stores `rope_parameters`. Here the two published
    # keys stay what is stored, so that a file reads and writes the same on every release.
    rope_scaling = None

    def __init__(
        self,
        vocab_size=103168,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        hidden_act="silu",
        max_position_embeddings=2048,
        initializer_range=0.02,
        rms_norm_eps=1e-6,
        use_cache=True,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        bias=True,
        rope_theta=10000,
        rope_scaling=None,
        rope_parameters=None,
        head_dim=None,
        **kwargs,
    ):
        # Older base classes overwrite these four, newer ones do not know them: hand them up, then set them.
        tokens = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(**tokens, tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings

        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.bias = bias
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        if rope_parameters:
            self.rope_parameters = rope_parameters
        self._check(head_dim)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rope_parameters(self) -> dict:
        """`rope_theta` and `rope_scaling` as one dictionary: `rope_type` (default, linear, dynamic), `rope_theta`, and
        `factor` unless the type is default. A fresh dictionary at each access.

        Raises:
            ValueError: the type or the factor is none of the supported ones.
        """
        scaling = self.rope_scaling or {}
        if not isinstance(scaling, dict):
            raise ValueError(f"rope_scaling is {scaling!r}: expected None or a dictionary with `type` and `factor`.")
        rope_type = scaling.get("rope_type", scaling.get("type"))
        if rope_type in _NO_ROPE_SCALING and "factor" not in scaling:
            return {"rope_type": "default", "rope_theta": self.rope_theta}
        if rope_type not in ROPE_TYPES:
            raise ValueError(f"rope_scaling has type {rope_type!r}: expected one of {', '.join(ROPE_TYPES)}.")
        factor = scaling.get("factor")
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor < 1:
            raise ValueError(f"rope_scaling has factor {factor!r}: expected a number of at least 1.")
        return {"rope_type": rope_type, "rope_theta": self.rope_theta, "factor": factor}

    @rope_parameters.setter
    def rope_parameters(self, value: dict) -> None:
        scaling = dict(value)
        self.rope_theta = scaling.pop("rope_theta", self.rope_theta)
        unscaled = scaling.get("rope_type", scaling.get("type")) in _NO_ROPE_SCALING
        self.rope_scaling = None if unscaled else scaling

    def convert_rope_params_to_dict(self, **kwargs) -> dict:
        """Newer base classes fold the rotary keys into one through this method; here there is nothing to fold."""
        kwargs.pop("ignore_keys_at_rope_validation", None)
        return kwargs

    def _check(self, head_dim) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: expected a positive integer.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}: expected an even multiple of num_attention_heads, "
                f"{self.num_attention_heads}."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}: expected a divisor of num_attention_heads, "
                f"{self.num_attention_heads}."
            )
        if head_dim is not None and head_dim != self.head_dim:
            raise ValueError(
                f"head_dim is {head_dim!r}: expected {self.head_dim}, hidden_size divided by num_attention_heads."
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id!r}: expected None or an id below vocab_size, {self.vocab_size}."
            )
        if not isinstance(self.rope_theta, (int, float)) or self.rope_theta <= 0:
            raise ValueError(f"rope_theta is {self.rope_theta!r}: expected a positive number.")
        _ = self.rope_parameters  # raises for a scaling that is not supported
