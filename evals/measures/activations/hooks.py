"""Hooks that are gone afterwards, whatever happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from merge_models.evals.measures.activations.sites import SiteSpec

Take = Callable[[SiteSpec, nn.Module, Any], None]


class Pass:
    """Counts the calls of each module in one forward pass: shared layers are called several times."""

    def __init__(self) -> None:
        self.calls: Counter[SiteSpec] = Counter()

    def begin(self) -> None:
        self.calls.clear()

    def number(self, spec: SiteSpec) -> int:
        self.calls[spec] += 1
        return self.calls[spec] - 1


@contextmanager
def hooked(model: nn.Module, specs: Sequence[SiteSpec], take: Take) -> Iterator[Pass]:
    """Gives ``take(site, module, value)`` what passes while it is open; ``begin`` starts a forward pass."""
    counted = Pass()
    handles = []

    def on_input(spec: SiteSpec) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            value = args[0] if args else next(iter(kwargs.values()), None)
            take(spec.call(counted.number(spec)), module, value)

        return hook

    def on_output(spec: SiteSpec) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            take(spec.call(counted.number(spec)), module, output)

        return hook

    try:
        for spec in specs:
            module = model.get_submodule(spec.module)
            if spec.before:
                handles.append(module.register_forward_pre_hook(on_input(spec), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(on_output(spec)))
        yield counted
    finally:
        for handle in handles:
            handle.remove()
