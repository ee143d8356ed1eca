"""InternVL: vision tower, pixel shuffle, projector, language model.

Puts the towers together: features, their merge into the text, forward, loss, generate, loading and saving. Prompts and
answers are the business of `chat_internvl.py`.
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# transformers before 5 copies only the files that this file itself imports when it loads remote code from a folder, so
# that every file of the bundle is named here, also those that only a sibling uses.
from .answer_internvl import add_end_tokens
from .attention_internvl import GROUPED, GROUPED_IS_KNOWN
from .chat_internvl import ChatMixin
from .chat_template_internvl import jinja_template  # noqa: F401
from .compat_internvl import (
    collects_tied_weights,
    flash_attention_available,
    going_on_from,
    is_initialized,
    is_prefill,
    lend_offloaded_weight,
    logits_to_keep_keyword,
    prompt_width_of_embeddings,
    quantization_keywords,
    register_for_pipeline,
    requested_attention,
    safetensors_keywords,
    stored_tensors,
    stored_token_id,
    tied_weights_of_parts,
    transformers_class,
    use_layout_of,
)
from .configuration_intern_vit import InternVisionConfig  # noqa: F401
from .configuration_internlm2 import InternLM2Config  # noqa: F401
from .configuration_internvl_chat import InternVLChatConfig
from .conversation import get_conv_template  # noqa: F401
from .features_internvl import VISION_BATCH_SIZE, FeatureMixin  # noqa: F401
from .history_internvl import ChatHistory  # noqa: F401
from .image_processing_internvl import PROCESSOR_AUTO_MAP, PROCESSOR_FILES
from .lora_internvl import ADAPTER_LAYERS, LoraMixin, without_adapters
from .messages_internvl import render  # noqa: F401
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM
from .preprocessing_internvl import load_image  # noqa: F401
from .processing_internvl import InternVLChatProcessor
from .prompt_internvl import IMG_CONTEXT_TOKEN
from .video_internvl import load_video  # noqa: F401
from .video_processing_internvl import InternVLChatVideoProcessor  # noqa: F401

logger = logging.getLogger(__name__)

# What `save_pretrained` puts beside the weights, so that the folder loads with `trust_remote_code=True`.
BUNDLE_FILES = (
    *PROCESSOR_FILES,
    "answer_internvl.py",
    "attention_internvl.py",
    "chat_internvl.py",
    "features_internvl.py",
    "history_internvl.py",
    "lora_internvl.py",
    "modeling_intern_vit.py",
    "modeling_internlm2.py",
    "modeling_internvl_chat.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForImageTextToText": "modeling_internvl_chat.InternVLChatForConditionalGeneration",
    **PROCESSOR_AUTO_MAP,
}

_NEVER_QUANTIZED = ("vision_model", "mlp1", "lm_head", "output", *ADAPTER_LAYERS)


def language_model_class(config):
    """The class for `llm_config.architectures[0]`; the configuration has checked the name."""
    architecture = config.architectures[0]
    return InternLM2ForCausalLM if architecture == "InternLM2ForCausalLM" else transformers_class(architecture)


class InternVLChatModel(ChatMixin, FeatureMixin, LoraMixin, PreTrainedModel, GenerationMixin):
    """InternVL with the published interface: `chat`, `batch_chat`, `stream_chat`, `generate`, `forward`.

    `from_pretrained` also quantises (`load_in_8bit=`, `load_in_4bit=`) and spreads over devices (`device_map=`, see
    `split_model`); `wrap_backbone_lora`, `wrap_llm_lora` and `merge_lora` put adapters on and take them off.

    Args:
        config: `InternVLChatConfig`.
        vision_model, language_model: ready towers instead of fresh ones.
        use_flash_attn: old name of `attn_implementation="flash_attention_2"`; falls back to `sdpa`, with one warning,
            where the package flash-attn or a CUDA device is missing.
    """

    config_class = InternVLChatConfig
    base_model_prefix = ""
    input_modalities = ("image", "text", "video")
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVisionEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # name of the line above before 4.54
    _supports_flex_attn = True
    _supports_cache_class = True
    _supports_static_cache = True
    _supports_quantized_cache = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _tied_weights_keys = tied_weights_of_parts(
        f"language_model.{adapted}{head}.weight"
        for adapted in ("", "base_model.model.")
        for head in ("lm_head", "output")
    )

    def __init__(self, config: InternVLChatConfig, vision_model=None, language_model=None, use_flash_attn=None):
        asked = requested_attention(config) or requested_attention(config.llm_config)
        super().__init__(config)
        config.check()  # values may have been set after the configuration was made
        llm_class = language_model_class(config.llm_config)
        self._place_attention(llm_class, use_flash_attn, asked)
        self.vision_model = InternVisionModel(config.vision_config) if vision_model is None else vision_model
        self.language_model = llm_class(config.llm_config) if language_model is None else language_model

        merged = round(1 / config.downsample_ratio) ** 2 * config.vision_config.hidden_size
        hidden = config.llm_config.hidden_size
        self.mlp1 = nn.Sequential(nn.LayerNorm(merged), nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.num_image_token = config.num_image_token
        self.select_layer = config.select_layer
        self.downsample_ratio = config.downsample_ratio
        self.ps_version = config.ps_version
        self.template = config.template
        self.conv_template = config.conversation()
        self.system_message = self.conv_template.system_message
        self.img_context_token_id = config.img_context_token_id
        self.post_init()
        use_layout_of(config)
        self._wrap_as_configured()

    # --- construction, loading, saving --------------------------------------------------------------------------------

    def _place_attention(self, llm_class, use_flash_attn, asked) -> None:
        """Hands the attention backend of the whole on to the towers that were given none of their own. Where the caller
        `asked` for none, a language model of transformers gets sdpa with our decoding steps for the CPU."""
        config, name = self.config, requested_attention(self.config)
        if use_flash_attn:
            if flash_attention_available():
                name = "flash_attention_2"
            else:
                _warn_once("use_flash_attn=True: no flash-attn package or no CUDA device, using sdpa instead")
        # A language model without sdpa (GPT-OSS) picks its own default.
        llm_name = None if name == "sdpa" and not getattr(llm_class, "_supports_sdpa", False) else name
        if llm_name == "sdpa" and not asked and GROUPED_IS_KNOWN and llm_class is not InternLM2ForCausalLM:
            llm_name = GROUPED
        config.set_attention(
            vision=requested_attention(config.vision_config) or name,
            llm=requested_attention(config.llm_config) or llm_name,
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights of the projector; the towers draw their own."""
        std = getattr(self.config.llm_config, "initializer_range", 0.02)
        with torch.no_grad():
            for name, parameter in module.named_parameters(recurse=False):
                if is_initialized(parameter):
                    continue
                if name == "bias":
                    parameter.zero_()
                elif isinstance(module, nn.LayerNorm):
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0.0, std)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As in transformers. `load_in_8bit=` and `load_in_4bit=` work on every release. The vision tower, the
        projector and the head stay in full precision, unless a `quantization_config` says itself what does. Weights
        come from safetensors files; pickled ones, which can run code, are read with `use_safetensors=False` only.

        Raises:
            OSError: no weights, or none but pickled ones.
            ValueError: the weights have LoRA adapters and the configuration does not, or the other way round.
        """
        kwargs = quantization_keywords(safetensors_keywords(pretrained_model_name_or_path, kwargs), _NEVER_QUANTIZED)
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model._settle_loaded_adapters(info["missing_keys"], info["unexpected_keys"])
        model._give_back_own_head(pretrained_model_name_or_path, kwargs)
        if model.config.tie_word_embeddings:
            head, table = model._head_and_table()
            lend_offloaded_weight(model, source=table, tied=head)
        if model.img_context_token_id is None and pretrained_model_name_or_path is not None:  # published files lack it
            model.img_context_token_id = stored_token_id(pretrained_model_name_or_path, IMG_CONTEXT_TOKEN, kwargs)
        if pretrained_model_name_or_path is not None:
            add_end_tokens(model, pretrained_model_name_or_path, kwargs)
        return (model, info) if wants_info else model

    def _give_back_own_head(self, folder_or_id, keywords) -> None:
        """A head of its own in the weights counts also where `tie_word_embeddings` is true (InternVL2-1B), and the
        configuration says so from then on: `tie_weights` and resizing would overwrite it. Loading drops such a head
        before 5.0 and keeps it since."""
        head, table = self.get_output_embeddings(), self.get_input_embeddings()
        if head.weight.device.type == "meta" or head.weight.device != table.weight.device:
            return
        if head.weight is not table.weight:
            self.config.tie_word_embeddings = self.config.llm_config.tie_word_embeddings = False
            return
        if collects_tied_weights():
            return
        names = self._head_and_table()
        stored = stored_tensors(folder_or_id, names, keywords)
        if len(stored) < 2 or torch.equal(*stored.values()):
            return
        kind = {"device": head.weight.device, "dtype": head.weight.dtype}
        for part, name in zip((head, table), names):
            part.weight = nn.Parameter(stored[name].to(**kind), requires_grad=part.weight.requires_grad)
        self.config.tie_word_embeddings = self.config.llm_config.tie_word_embeddings = False

    def _head_and_table(self) -> list:
        """Names of the weights of the output and of the input embeddings."""
        names = {id(part): f"{name}.weight" for name, part in self.named_modules()}
        return [names[id(part)] for part in (self.get_output_embeddings(), self.get_input_embeddings())]

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, and the folder holds the code too: it loads again through any door.

        Everything is written beside the folder first and then moved in, so that saving over the folder from which the
        weights are mapped into memory is safe and an interrupted save leaves what was there.
        """
        target = Path(save_directory)
        if target.is_file():
            raise ValueError(f"save_directory must be a folder, {target} is a file")
        target.mkdir(parents=True, exist_ok=True)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", target.name)
        staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target.resolve().parent))
        try:
            use_layout_of(self.config)
            super().save_pretrained(staging, *args, **kwargs)
            _add_code(staging)
            written = {path.name for path in staging.iterdir()}
            for name in sorted(written):
                os.replace(staging / name, target / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if any(name.endswith(".safetensors") for name in written):
            for path in target.glob("model*.safetensors*"):  # shards of an earlier save
                if path.name not in written:
                    path.unlink()

    # --- embeddings ---------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args, **kwargs):
        return self.language_model.resize_token_embeddings(*args, **kwargs)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def merge_embeddings(self, input_ids, features=None, img_context_token_id=None) -> torch.Tensor:
        """Text embeddings with visual features in the place of the image tokens.

        Args:
            input_ids: (batch, length) int64.
            features: (tiles, tokens, hidden) or (tokens, hidden), in the order of the image tokens; None for text only.
            img_context_token_id: id of `<IMG_CONTEXT>`; default: the model's.

        Returns:
            (batch, length, hidden), in the dtype of the embedding table.

        Raises:
            ValueError: the number of image tokens and of features differ (names both), or the id is not known.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if features is None:
            return embeddings
        features = features.reshape(-1, features.shape[-1])
        mask = self._image_places(input_ids, features.shape[0], img_context_token_id).to(embeddings.device)
        features = features.to(embeddings.device, embeddings.dtype)
        if torch.is_grad_enabled():
            return embeddings.masked_scatter(mask.unsqueeze(-1), features)
        return embeddings.masked_scatter_(mask.unsqueeze(-1), features)  # without a second copy of a long prompt

    def _image_places(self, input_ids, num_features, img_context_token_id=None) -> torch.Tensor:
        """Where the image tokens are: (batch, length) bool. Errors of `merge_embeddings`."""
        image_id = self.img_context_token_id if img_context_token_id is None else img_context_token_id
        if image_id is None:
            raise ValueError(
                "the id of <IMG_CONTEXT> is not known: set model.img_context_token_id, or img_context_token_id in the "
                "configuration (chat and batch_chat take it from the tokenizer)"
            )
        mask = input_ids == image_id
        found = int(mask.sum())
        if found != num_features:
            raise ValueError(
                f"the prompt has {found} image tokens, the images give {num_features} ({self.num_image_token} a tile)"
            )
        return mask

    # --- forward ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: Optional[torch.Tensor] = None,
        input_ids: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.Tensor] = None,
        image_flags: Optional[torch.Tensor] = None,
        past_key_values=None,
        labels: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        statistics=None,
        loss_weight=None,
        loss_reduction_all_gather: bool = False,
        inputs_embeds: Optional[torch.Tensor] = None,
        logits_to_keep=0,
        num_items_in_batch=None,
        **kwargs,
    ):
        """One pass of the whole model, for training and for `generate`.

        Args:
            pixel_values: (tiles, 3, height, width) of all images of the batch in the order of their image tokens; None
                for text, and for steps after the first.
            input_ids: (batch, length); `inputs_embeds` (batch, length, hidden) stands in its place.
            image_flags: (tiles,) or (tiles, 1); only tiles flagged 1 are used (training batches pad with empty tiles).
            labels: (batch, length), -100 is ignored; shifted inside.
            statistics: accepted and ignored, as in the published signature.
            loss_weight: (batch, length), weight of each label; the loss is divided by the sum of the shifted weights.
            loss_reduction_all_gather: average that sum over the processes of `torch.distributed`.
            logits_to_keep: number of last positions (or tensor of positions) whose logits are wanted; 0 means all.
            num_items_in_batch: divisor of the loss when gradients are accumulated (transformers' Trainer passes it).

        Returns:
            `CausalLMOutputWithPast`, or a tuple where `return_dict` is false.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`, images without ids, or counts that differ.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            features = None
            if pixel_values is not None:
                features = self.extract_feature(pixel_values)
                if image_flags is not None:
                    image_flags = image_flags.reshape(-1).to(features.device)
                    if len(image_flags) != len(features):
                        raise ValueError(f"image_flags has {len(image_flags)} entries for {len(features)} tiles")
                    features = features[image_flags == 1]
            inputs_embeds = self.merge_embeddings(input_ids, features)
        elif pixel_values is not None:
            raise ValueError("pixel_values needs input_ids: inputs_embeds does not tell where the images go")

        keep_name = logits_to_keep_keyword(type(without_adapters(self.language_model)).forward)
        if keep_name and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            kwargs[keep_name] = logits_to_keep
        if keep_name and kwargs.get(keep_name, 0) is None:  # Phi3 of 4.48 passes None on, which it cannot take itself
            del kwargs[keep_name]
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        logits = outputs.logits
        if not keep_name and isinstance(logits_to_keep, int) and logits_to_keep:
            logits = logits[:, -logits_to_keep:]
        loss = None
        if labels is not None:
            loss = _language_loss(logits, labels, loss_weight, loss_reduction_all_gather, num_items_in_batch)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    # --- generation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate_new_tokens(
        self,
        pixel_values: Optional[torch.Tensor] = None,
        input_ids: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        visual_features: Optional[torch.Tensor] = None,
        generation_config=None,
        output_hidden_states: Optional[bool] = None,
        img_context_token_id: Optional[int] = None,
        vision_batch_size: Optional[int] = None,
        prefix_key_values: Optional[tuple] = None,
        **generate_kwargs,
    ):
        """Continues a prompt and returns the new tokens only, as the published code does.

        Args:
            pixel_values: (tiles, 3, height, width) or None.
            input_ids: (batch, length) with `<IMG_CONTEXT>` where the tiles go; left-padded where lengths differ.
            attention_mask: (batch, length); None means that nothing is padding.
            visual_features: (tiles, tokens, hidden), what `extract_feature` returned, instead of `pixel_values`.
            generation_config, generate_kwargs: as in `transformers`' `generate` of the language model.
            img_context_token_id: id of `<IMG_CONTEXT>`, default the model's.
            vision_batch_size: see `extract_feature`.
            prefix_key_values: keys and values of the first columns of `input_ids`, a pair for each layer, both (batch,
                heads, columns, head size), from an earlier call's cache; they are not changed. Only the other columns
                are computed, and images are those of the image tokens there.

        Returns:
            (batch, new tokens) int64, or the release's output object where `return_dict_in_generate` is set.

        Raises:
            ValueError: no `input_ids`, both kinds of visual input, or counts that differ.
        """
        if input_ids is None:
            raise ValueError("generate needs input_ids")
        if pixel_values is not None and visual_features is not None:
            raise ValueError("give pixel_values or visual_features, not both")
        if pixel_values is not None:
            side = self.config.vision_config.patch_size * round(1 / self.downsample_ratio)
            if pixel_values.dim() == 4:  # counts that differ are told before the tower has run
                self._image_places(input_ids, pixel_values[:, 0, ::side, ::side].numel(), img_context_token_id)
            visual_features = self.extract_feature(pixel_values, vision_batch_size)
        embedding_device = self.get_input_embeddings().weight.device
        if embedding_device.type != "meta":
            input_ids = input_ids.to(embedding_device)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        past = 0 if prefix_key_values is None else prefix_key_values[0][0].shape[-2]
        inputs_embeds = self.merge_embeddings(input_ids[:, past:], visual_features, img_context_token_id)
        language_model = self.language_model
        attention_mask = attention_mask.to(inputs_embeds.device)
        if past:
            inputs_embeds = F.pad(inputs_embeds, (0, 0, past, 0))  # one for each column; those are not looked at
            language_model, more = going_on_from(prefix_key_values, without_adapters(language_model), attention_mask)
            generate_kwargs.update(more)
        if output_hidden_states is not None:
            generate_kwargs["output_hidden_states"] = output_hidden_states
        invented = prompt_width_of_embeddings()  # those releases refuse to start without what is cut off below
        bos = generate_kwargs.get("bos_token_id", getattr(generation_config, "bos_token_id", None)) or 0
        if generation_config is None:
            generate_kwargs.setdefault("use_cache", True)  # a model in training may have it off
        output = language_model.generate(
            # What transformers makes itself, but on the model's device, which is "meta" for an offloaded one.
            inputs=input_ids.new_full((len(input_ids), invented), bos).to(inputs_embeds.device),
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            generation_config=generation_config,
            **generate_kwargs,
        )
        if not invented:
            return output
        if torch.is_tensor(output):
            return output[:, invented:]
        output.sequences = output.sequences[:, invented:]
        return output

    generate = generate_new_tokens

    def prepare_inputs_for_generation(self, input_ids, pixel_values=None, past_key_values=None, **kwargs):
        """Inputs of one step: the language model's own, and the images at the first."""
        inputs = self.language_model.prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        if pixel_values is not None and is_prefill(past_key_values, kwargs):
            inputs["pixel_values"] = pixel_values
        return inputs

    def _reorder_cache(self, past_key_values, beam_idx):
        return self.language_model._reorder_cache(past_key_values, beam_idx)


class InternVLChatForConditionalGeneration(InternVLChatModel):
    """The model behind `AutoModelForImageTextToText`: `generate` has transformers' standard meaning and returns the
    prompt followed by the new tokens, which `pipeline` and `processor.decode` expect. `chat` is not affected."""

    def generate(self, *args, **kwargs):
        return GenerationMixin.generate(self, *args, **kwargs)


def _language_loss(logits, labels, weights, all_gather, num_items) -> torch.Tensor:
    """Next-token cross entropy in float32: the mean over labels, or weighted as in the published training code."""
    logits = logits[:, :-1].flatten(0, 1).float()
    labels = labels[:, 1:].flatten().to(logits.device)
    if weights is None:
        total = F.cross_entropy(logits, labels, reduction="sum")
        count = (labels != -100).sum() if num_items is None else num_items
        return total / count
    weights = torch.as_tensor(weights, dtype=torch.float32, device=logits.device)[..., 1:].flatten()
    total_weight = weights.sum()
    if all_gather:
        torch.distributed.all_reduce(total_weight, op=torch.distributed.ReduceOp.AVG)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / total_weight


def _add_code(folder: Path) -> None:
    """Puts the bundle's files into a freshly saved folder and names them in its `config.json`."""
    here = Path(__file__).parent
    for name in BUNDLE_FILES:
        if (here / name).is_file():
            shutil.copyfile(here / name, folder / name)
    path = folder / "config.json"
    if not path.is_file():  # adapters only
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = ["InternVLChatModel"]  # the name that serving engines look for
    config["auto_map"] = {**config.get("auto_map", {}), **AUTO_MAP}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


_warned = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)


register_for_pipeline(InternVLChatConfig, InternVLChatProcessor)
