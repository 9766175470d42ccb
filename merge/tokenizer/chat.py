"""Chat templates: built-in ones by name, a recipe's own Jinja text, or what most of the sources have.

The built-in ones are written here from the formats' public descriptions; each renders a system message, turns
of user and assistant, and the start of an answer (``add_generation_prompt``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.errors import RecipeError, did_you_mean, printable

FILE = "chat_template.jinja"
_MAX = 1 << 20

BUILT_IN = {
    "alpaca": (
        "{%- set names = {'user': '### Instruction:\\n', 'assistant': '### Response:\\n', 'system': ''} -%}"
        "{%- if messages and messages[0]['role'] != 'system' -%}"
        "{{- 'Below is an instruction that describes a task. Write a response that appropriately completes"
        " the request.\\n\\n' -}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{{- names[message['role']] + message['content'] | trim -}}"
        "{{- eos_token if message['role'] == 'assistant' -}}"
        "{{- '\\n\\n' -}}"
        "{%- endfor -%}"
        "{{- names['assistant'] if add_generation_prompt -}}"
    ),
    "chatml": (
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}"
    ),
    "exaone": (
        "{%- if messages and messages[0]['role'] != 'system' -%}"
        "{{- '[|system|][|endofturn|]\\n' -}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{{- '[|' + message['role'] + '|]' + message['content'] -}}"
        "{{- '[|endofturn|]' if message['role'] != 'user' -}}"
        "{{- '\\n' if message['role'] == 'user' or not loop.last or add_generation_prompt -}}"
        "{%- endfor -%}"
        "{{- '[|assistant|]' if add_generation_prompt -}}"
    ),
    "llama3": (
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
        "{{- message['content'] | trim + '<|eot_id|>' -}}"
        "{%- endfor -%}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt -}}"
    ),
    "mistral": (
        "{{- bos_token -}}"
        "{%- set system = '' -%}{%- set turns = messages -%}"
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{%- set system = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}"
        "{%- endif -%}"
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}"
        "{{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' -}}"
        "{%- else -%}"
        "{{- ' ' + message['content'] | trim + eos_token -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
    ),
}


def choose_template(setting: str, models: Sequence[DiskSource], donor: DiskSource) -> str | None:
    """Returns the Jinja text that a recipe's ``chat_template`` stands for; None where ``auto`` finds none.

    Raises:
        RecipeError: it names no template, or is not valid Jinja.
    """
    if setting == "auto":
        return _most_common(models, donor)
    if setting in BUILT_IN:
        return BUILT_IN[setting]
    if "{{" not in setting and "{%" not in setting:
        hint = did_you_mean(setting, ["auto", *BUILT_IN])
        raise RecipeError(f"chat_template: '{printable(setting)}' is neither a name nor Jinja text{hint}")
    _check(setting)
    return setting


def _check(text: str) -> None:
    import jinja2

    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)  # a block of transformers' own
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(
            f"chat_template: not valid Jinja near line {error.lineno}: {printable(str(error.message))};"
            " mend it"
        ) from None


def _most_common(models: Sequence[DiskSource], donor: DiskSource) -> str | None:
    """The template that most models have; the donor's among equals, then the first."""
    own = template_of(donor)
    templates = [text for text in map(template_of, models) if text is not None]
    counts = Counter(templates)
    return max(templates, key=lambda text: (counts[text], text == own), default=None)


def template_of(model: DiskSource) -> str | None:
    """Returns a model's own chat template."""
    folder: Path = model.tokenizer_folder
    file = folder / FILE
    try:
        if file.is_file() and file.stat().st_size <= _MAX:
            return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    value = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(value, list):  # older files list several, by name
        named = [entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        value = named[0].get("template") if named else None
    return value if isinstance(value, str) else None
