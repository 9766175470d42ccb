"""Where a model is measured: found by structure, with no table of architectures.

The residual stream is the output of each layer of the model's stack: the outermost lists of modules that hold
a tenth or more of its parameters. In a layer, the attention (or another mixer of tokens) and the MLP are
found by the names of their modules; where such a module ends in a norm, as BERT's do, its last linear module
is taken instead, so that what is measured is what is added to the residual stream, before any norm. A module
without a stack is measured at each of its leaves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from merge_models.evals.schema import Site

_ATTENTION = re.compile(r"attn|attention|mixer|mamba|ssm|time_mix|temporal_block", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|dense_?relu|moe|experts|channel_mix", re.IGNORECASE)
_OTHER = re.compile(r"norm|(^|_)ln(_|$)|drop|gate$|router|rotary|rel_pos|position", re.IGNORECASE)
_CONVOLUTIONS = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)
_LAST_DIMENSION = (nn.Linear, nn.LayerNorm, nn.Embedding)
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class SiteSpec:
    """A place in a model.

    Attributes:
        site: what it is.
        layer: 0-based number of its layer; None before the first one.
        module: name of the module that is hooked.
        before: whether its input is meant, not its output.
        period: layers in its stack: what is called again in one pass (shared layers) counts that much deeper.
    """

    site: Site
    layer: int | None
    module: str
    before: bool = False
    period: int = 0

    def call(self, number: int) -> SiteSpec:
        """Returns the same place in the module's call ``number`` (from 0) of one pass."""
        if number == 0:
            return self
        layer = None if self.layer is None else self.layer + number * self.period
        return replace(self, layer=layer, module=f"{self.module} (call {number + 1})")


def find_sites(model: nn.Module) -> list[SiteSpec]:
    """Returns every place to measure, in the model's order."""
    layers = list(_layers(model))
    if not layers:
        return given_sites(model, [name for name, module in model.named_modules() if _is_leaf(module)])
    first = layers[0][0]
    specs = [SiteSpec("embedding", None, first, before=True)]
    for number, (name, layer) in enumerate(layers):
        attention = _part(layer, _ATTENTION)
        mlp = _part(layer, _MLP) or _last_linear(layer, beside=attention)
        if attention is not None:
            specs.append(SiteSpec("attention", number, f"{name}.{attention}", period=len(layers)))
        if mlp is not None and mlp != attention:
            specs.append(SiteSpec("mlp", number, f"{name}.{mlp}", period=len(layers)))
        specs.append(SiteSpec("residual", number, name, period=len(layers)))
    return specs


def given_sites(model: nn.Module, names: Iterable[str]) -> list[SiteSpec]:
    """Returns the outputs of named modules, numbered in the given order.

    Raises:
        KeyError: the model has no module of that name.
    """
    known = dict(model.named_modules())
    chosen = list(names)
    for name in chosen:
        if name not in known:
            raise KeyError(name)
    return [SiteSpec("module", n, name, period=len(chosen)) for n, name in enumerate(chosen)]


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The members of the outermost large stacks, in order."""
    least = _LEAST_SHARE * max(_size(model), 1)
    stacks: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in stacks)
        if inside or not _is_stack(module) or _size(module) < least:
            continue
        stacks.append(name)
        for key, layer in module.named_children():
            yield f"{name}.{key}", layer


def _is_stack(module: nn.Module) -> bool:
    """A list of modules with parts of their own; a ``Sequential`` counts where its members are alike."""
    children = list(module.children())
    whole = bool(children) and all(any(True for _ in child.children()) for child in children)
    if isinstance(module, nn.ModuleList):
        return whole
    return (
        isinstance(module, nn.Sequential) and whole and len({type(c) for c in children}) == 1 < len(children)
    )


def _part(layer: nn.Module, pattern: re.Pattern[str]) -> str | None:
    """Name in the layer of its shallowest part that the pattern names; where that adds the residual, of the
    linear module at its end."""
    names = [name for name, module in layer.named_modules() if name and _size(module)]
    named = [n for n in names if pattern.search(_last(n)) and not _OTHER.search(_last(n))]
    if not named:
        return None
    best = min(named, key=lambda n: n.count("."))
    part = layer.get_submodule(best)
    last_norm, last_linear = _last_norm(part), _last_linear(part)
    if last_norm is not None and last_linear is not None:
        order = [name for name, _ in part.named_modules()]
        if order.index(last_norm) > order.index(last_linear):
            return f"{best}.{last_linear}"
    return best


def _last_linear(module: nn.Module, beside: str | None = None) -> str | None:
    specs = [
        name
        for name, part in module.named_modules()
        if name and _is_linear(part) and not (beside and f"{name}.".startswith(f"{_top(beside)}."))
    ]
    return specs[-1] if specs else None


def _last_norm(module: nn.Module) -> str | None:
    norms = [name for name, part in module.named_modules() if name and "norm" in type(part).__name__.lower()]
    return norms[-1] if norms else None


def _is_linear(module: nn.Module) -> bool:
    """A linear module, by its form: GPT-2's ``Conv1D`` has no other mark."""
    weight = getattr(module, "weight", None)
    return _is_leaf(module) and isinstance(weight, Tensor) and weight.ndim == 2 and _acts(module)


def _acts(module: nn.Module) -> bool:
    return not isinstance(module, nn.Embedding) and "norm" not in type(module).__name__.lower()


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _top(name: str) -> str:
    return name.partition(".")[0]


def first_tensor(value: Any) -> Tensor | None:
    """Returns the tensor that a module's output is, or begins with."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return first_tensor(value[0])
    return None


def tokens_of(value: Any, module: nn.Module, sequences: int) -> Tensor | None:
    """Returns a module's output as [sequences, tokens, units]; None where it is nothing of the kind.

    [B, d] has one token a sequence, [B, C, H, W] a token for each place of an image, and [B, C, L] of a
    convolution one for each place of a signal.
    """
    x = first_tensor(value)
    if x is None or not x.is_floating_point() or x.ndim < 2 or not x.numel():
        return None
    if x.ndim == 3 and isinstance(module, _CONVOLUTIONS):
        x = x.transpose(1, 2)
    elif x.ndim > 3 and not isinstance(module, _LAST_DIMENSION):
        x = x.movedim(1, -1)
    x = x.detach()
    if x.shape[0] == sequences:
        return x.reshape(sequences, -1, x.shape[-1])
    return x.reshape(sequences, -1, x.shape[-1]) if x.ndim == 2 and x.shape[0] % sequences == 0 else None


def finite(x: Tensor) -> bool:
    """Returns whether a tensor holds no NaN and no infinity."""
    return bool(torch.isfinite(x).all())
