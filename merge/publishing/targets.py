"""What kind of folder a merge makes: how weight files are called, and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.layers import stacks
from merge_models.merge.checkpoint.outputs.staging import Staging
from merge_models.merge.checkpoint.sidecars import output_config
from merge_models.merge.checkpoint.sources.tied import untied
from merge_models.merge.checkpoint.stacked import stacked_config
from merge_models.merge.publishing.prepared import Prepared

GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"


Transform = Callable[[dict[str, Any], "Prepared"], dict[str, Any]]


class ModelTarget:
    """A model as transformers loads it: weights, config, tokenizer, and what else its donor has."""

    name = "model"
    stem = "model"

    def config(self, prepared: Prepared) -> dict[str, Any]:
        """Returns the donor's config, changed in turn by stacks of layers, tokens, heads and dtype."""
        config = dict(prepared.donor.config)
        if not config or prepared.plan.main_dtype() is None:
            return config
        for transform in _TRANSFORMS:
            config = transform(config, prepared)
        return config

    def write_files(self, prepared: Prepared, staging: Staging) -> None:
        """Writes the donor's small files, the config, and the tokenizer where the recipe asks for one."""
        for name, data in prepared.sidecars.contents():
            staging.write_bytes(name, data)
        config = self.config(prepared)
        if config:
            staging.write_json("config.json", config)
        _write_tokenizer(prepared, staging)


MODEL = ModelTarget()


def _restacked(config: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    plan = prepared.plan
    if not plan.stacks:
        return config
    configs: list[Mapping[str, Any]] = [model.config for model in prepared.models]
    return stacked_config(configs, plan.donor, stacks(prepared.donor.tensors), plan.stacks)


def _with_tokens(config: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    return config if prepared.alignment is None else prepared.alignment.remapped(config)


def _with_own_head(config: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    return untied(config) if prepared.plan.untied else config


def _with_dtype(config: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    dtype = prepared.plan.main_dtype()
    return config if dtype is None else output_config(config, dtype)


_TRANSFORMS: tuple[Transform, ...] = (_restacked, _with_tokens, _with_own_head, _with_dtype)


def _write_tokenizer(prepared: Prepared, staging: Staging) -> None:
    """What a recipe asks for beyond the donor's own tokenizer files."""
    alignment, template = prepared.alignment, prepared.chat_template
    if alignment is not None:
        from merge_models.merge.tokenizer.build import save_tokenizer

        save_tokenizer(alignment.tokenizer, staging.folder)
        generation = read_json(staging.folder / GENERATION)
        if generation:
            staging.write_json(GENERATION, alignment.remapped(generation))
    if template is not None:
        staging.write_text("chat_template.jinja", template)
        settings = read_json(staging.folder / TOKENIZER)
        if settings:  # where transformers before 4.50 look for it
            staging.write_json(TOKENIZER, {**settings, "chat_template": template})
