"""A small OPT with random weights, for trying a real engine where no model can be fetched.

It says nothing sensible, but costs what its size costs. `python -m slos.serving.tiny_model FOLDER`
writes one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

VOCABULARY = 512
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"  # a template


def write(
    folder: Path | str, hidden: int = 256, layers: int = 4, max_context: int = 2048, seed: int = 0
) -> Path:
    """Write checkpoint, configuration and a byte-level tokenizer to `folder`, unless they are
    there; the folder.

    Needs torch and transformers, which come with vLLM.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, ffn_dim=4 * hidden,
        num_attention_heads=hidden // 64, max_position_embeddings=max_context,
        word_embed_proj_dim=hidden, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        init_std=0.2,  # wide, so that its answers depend on the prompt
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # ids 0 to 3
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*special.values()], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"], trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **special)
    whole.save_pretrained(folder)
    return folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slos.serving.tiny_model", description=__doc__)
    parser.add_argument("folder")
    width = "width, a multiple of 64 (default: %(default)s)"
    parser.add_argument("--hidden", type=int, default=256, help=width)
    parser.add_argument("--layers", type=int, default=4, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.hidden < 64 or args.hidden % 64 or args.layers < 1:
        bound = f"a multiple of 64 and --layers {args.layers} at least 1"
        parser.error(f"--hidden {args.hidden} must be {bound}")
    print(write(args.folder, args.hidden, args.layers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
