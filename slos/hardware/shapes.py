"""Shapes of published models, so that a GPU can be measured where no weights can be fetched.

A step's time depends on a model's shape and not on what its weights say. Figures are those of the
configuration that each model was published with; `write` makes a folder that vLLM loads with
`load_format="dummy"`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slos.core.types import require


def opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """OPT (arXiv 2205.01068, table 1)."""
    return {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": 50272,
        "hidden_size": hidden, "word_embed_proj_dim": hidden, "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "max_position_embeddings": 2048, "activation_function": "relu",
        "do_layer_norm_before": True, "dropout": 0.0, "tie_word_embeddings": True,
        "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
    }  # fmt: skip


def _llama(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    """Llama 2 (arXiv 2307.09288)."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0,
    }  # fmt: skip


def _rope(factor: float) -> dict[str, Any]:
    """Rotary embedding of Llama 3.1 and later."""
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def _llama3(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    """Llama 3.1 (arXiv 2407.21783, table 3) and 3.2."""
    return _llama(hidden, intermediate, layers, heads) | {
        "vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": _rope(8.0),
        "bos_token_id": 128000, "eos_token_id": 128001,
    }  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": opt(256, 4, 4) | {"vocab_size": 512},
    "opt-125m": opt(768, 12, 12),
    "opt-6.7b": opt(4096, 32, 32),
    "opt-13b": opt(5120, 40, 40),
    "opt-30b": opt(7168, 48, 56),
    "llama-3.1-8b": _llama3(4096, 14336, 32, 32),
    "llama-3.1-70b": _llama3(8192, 28672, 80, 64),
    "llama-3.2-1b": _llama3(2048, 8192, 16, 32)
    | {"head_dim": 64, "tie_word_embeddings": True, "rope_scaling": _rope(32.0)},
    "llama-2-7b": _llama(4096, 11008, 32, 32) | {"max_position_embeddings": 4096},
    "toolllama-2-7b": _llama(4096, 11008, 32, 32) | {"max_position_embeddings": 8192},
    "codellama-34b": _llama(8192, 22016, 48, 64)
    | {"num_key_value_heads": 8, "max_position_embeddings": 16384, "rope_theta": 1000000.0},
    "qwen3-8b": _llama(4096, 12288, 36, 32) | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "bos_token_id": 151643, "eos_token_id": 151645,
    },
    "r1-distill-qwen-1.5b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936,
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
        "rope_theta": 10000.0, "use_sliding_window": False,
        "bos_token_id": 151643, "eos_token_id": 151643,
    },
}  # fmt: skip
"""Hugging Face configurations by name; `tiny` is of no published model and runs on a CPU."""
GATED = tuple(name for name, c in SHAPES.items() if c.get("hidden_act") == "silu")


@dataclass(frozen=True, slots=True)
class Shape:
    """What the kernels of a decoder with gated layers depend on."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # the embedding is the output layer, too

    @property
    def weights(self) -> int:
        """Parameters."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim
        layer = self.hidden * (attention + 3 * self.intermediate)
        return self.layers * layer + (2 - self.tied) * self.vocabulary * self.hidden


def shape_of(name: str) -> Shape:
    """Raises ValueError for one that is unknown, or whose layers are not gated."""
    require(name in GATED, "shape", name, f"one of {', '.join(GATED)}")
    c = SHAPES[name]
    heads = c["num_attention_heads"]
    return Shape(
        c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], heads,
        c["num_key_value_heads"], c.get("head_dim", c["hidden_size"] // heads),
        c["vocab_size"], c["tie_word_embeddings"],
    )  # fmt: skip


def kv_bytes(model: str) -> int:
    """Of a token in the KV cache: key and value, two bytes a number. model: as profiles name it,
    with its draft model, whose own cache is left out.

    Raises ValueError for an unknown shape.
    """
    name = model.split(" + ")[0].lower()
    require(name in SHAPES, "model", model, f"one of {', '.join(SHAPES)}", "add it to SHAPES")
    c = SHAPES[name]
    heads = c["num_attention_heads"]
    wide = c.get("num_key_value_heads", heads) * c.get("head_dim", c["hidden_size"] // heads)
    return 2 * 2 * c["num_hidden_layers"] * wide


SPECIAL = ("<unk>", "<pad>", "</s>", "<s>")  # ids 0 to 3


def write(config: dict[str, Any], folder: Path | str, chat: str = "") -> Path:
    """A folder with a configuration and a tokenizer of bytes, without weights; returns it.

    The tokenizer names every id of the vocabulary, since random weights may choose any. chat: its
    template. Needs `tokenizers`, which comes with vLLM.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}, indent=1))
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"<{i}>" for i in range(len(names), config["vocab_size"])]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    told = dict(zip(("unk_token", "pad_token", "eos_token", "bos_token"), SPECIAL, strict=True))
    told |= {"tokenizer_class": "PreTrainedTokenizerFast"} | (
        {"chat_template": chat} if chat else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder
