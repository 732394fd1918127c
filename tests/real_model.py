"""Turns a folder with one .gguf file into a model directory that loads in a second or two.

python -m tests.real_model GGUF_FOLDER OUTPUT
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(folder: Path, output: Path) -> None:
    """Save the model and the tokenizer of the one .gguf file below ``folder``, de-quantised to float32."""
    (file,) = sorted(folder.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers takes the model for a quantised one, which it would not save.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.is_quantized = False
    model.quantization_method = None
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
