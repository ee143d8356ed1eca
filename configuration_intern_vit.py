"""Configuration of the vision tower: `InternVisionConfig`. Knows nothing of the language model or of images."""

from transformers import PretrainedConfig

NORM_TYPES = ("rms_norm", "layer_norm")


class InternVisionConfig(PretrainedConfig):
    """Shape and options of `InternVisionModel`. The defaults are those of the published InternViT-6B.

    Args:
        num_channels: channels of an image.
        patch_size: side of a patch in pixels.
        image_size: side of the images in pixels for which the position table is made.
        qkv_bias: whether the fused query/key/value projection has a bias (InternViT-300M does, 6B does not).
        hidden_size, num_attention_heads, intermediate_size, num_hidden_layers: dimensions of the transformer.
        qk_normalization: RMS-normalise queries and keys over all heads together (InternViT-6B).
        use_flash_attn: as published; on its own it only matters where `attn_implementation` is left open, the package
            flash-attn and a CUDA device are there and the weights are 16-bit.
        hidden_act: activation of the MLP, a name that `transformers` knows.
        norm_type: `"rms_norm"` or `"layer_norm"`.
        layer_norm_eps: epsilon of all norms.
        dropout: dropout after the attention and MLP projections.
        drop_path_rate: stochastic depth of the last layer; it grows linearly from 0 at the first.
        attention_dropout: dropout on attention weights.
        initializer_range: standard deviation of fresh weights.
        initializer_factor: first value of the layer scales `ls1` and `ls2`.

    Raises:
        ValueError: a value cannot work (names the value and what was expected).
    """

    model_type = "intern_vit_6b"
    base_config_key = "vision_config"

    def __init__(
        self,
        num_channels=3,
        patch_size=14,
        image_size=224,
        qkv_bias=False,
        hidden_size=3200,
        num_attention_heads=25,
        intermediate_size=12800,
        qk_normalization=True,
        num_hidden_layers=48,
        use_flash_attn=True,
        hidden_act="gelu",
        norm_type="rms_norm",
        layer_norm_eps=1e-6,
        dropout=0.0,
        drop_path_rate=0.0,
        attention_dropout=0.0,
        initializer_range=0.02,
        initializer_factor=0.1,
        **kwargs,
    ):
        sizes = {
            "num_channels": num_channels,
            "patch_size": patch_size,
            "image_size": image_size,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_hidden_layers,
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a positive integer")
        if norm_type not in NORM_TYPES:
            raise ValueError(f"norm_type={norm_type!r} is unknown; choices: {', '.join(NORM_TYPES)}")
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size={hidden_size} is not divisible by num_attention_heads={num_attention_heads}")
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} is not divisible by patch_size={patch_size}")
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.qkv_bias = qkv_bias
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.qk_normalization = qk_normalization
        self.num_hidden_layers = num_hidden_layers
        self.use_flash_attn = use_flash_attn
        self.hidden_act = hidden_act
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        super().__init__(**kwargs)
