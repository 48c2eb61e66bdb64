# SPDX-License-Identifier: Apache-2.0
"""A tokenizer and a chat template that are not ours, after the manner of ChatML."""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_ID = 2
CHATML = """\
{% if messages[0].role != 'system' %}{{ bos_token + 'system\\nBe brief.' + eos_token }}
{% endif %}{% for message in messages %}
{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def write_foreign(folder: pathlib.Path, *more: str) -> None:
    """Writes a tokenizer with the tokens in `more`, its template, and their names."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]  # stub lacks the setter
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]  # stub lacks the setter
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*SPECIAL, *more],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["seven plus eight is fifteen"] * 3, trainer=trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "chat_template.jinja").write_text(CHATML)
    tokens = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
