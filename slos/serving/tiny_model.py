"""A small OPT with random weights, for trying a real engine where no model can be fetched.

It says nothing sensible, but costs what its size costs. `python -m slos.serving.tiny_model FOLDER`
writes one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from slos.hardware import shapes

VOCABULARY = 512
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"  # a template


def write(
    folder: Path | str, hidden: int = 256, layers: int = 4, max_context: int = 2048, seed: int = 0
) -> Path:
    """Write checkpoint, configuration and a tokenizer of bytes to `folder`, unless they are there;
    the folder.

    Needs torch and transformers, which come with vLLM.
    """
    folder = Path(folder)
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    config = shapes.opt(hidden, layers, hidden // 64) | {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": max_context,
        "init_std": 0.2,  # wide, so that its answers depend on the prompt
    }
    shapes.write(config, folder, CHAT)
    torch.manual_seed(seed)
    OPTForCausalLM(OPTConfig(**config)).save_pretrained(folder)
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
