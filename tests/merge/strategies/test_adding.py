"""A new strategy takes three places: its file, the package's list, the tests' table; all else follows."""

from __future__ import annotations

from pathlib import Path

from tests.tree import changed, copied_tree, edit, run, run_tests

NEW_FILE = '''"""Midrange: the middle between the smallest and the largest value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families.blocks import torch_kernel

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class Midrange(AbstractStrategy):
    """Takes for each element the middle between the models' smallest and largest value.

    Kernel: midrange. Carrier: flat space.
    """

    name: ClassVar[str] = "midrange"
    source: ClassVar[str] = "a test"

    scale: float = parameter(1.0, "factor of the result")

    def kernel(self, case: Case) -> Kernel:
        return torch_kernel(case, self._middle)

    def _middle(self, block: Block, survey: None) -> Tensor:
        del survey
        low, high = torch.stack(block.parents).aminmax(dim=0)
        return self.scale * torch.where(low == high, low, low / 2 + high / 2)
'''
TYPED = "    from merge_models.merge.strategies.midrange import Midrange as Midrange\n"
HOME = '    "Midrange": "midrange",\n'
IMPORT = "    Midrange,\n"
ROW = """    Case("midrange", Midrange(), identity=Midrange(), no_mean="looks at the outermost two only"),
"""
MERGES = """
import torch
from merge_models.merge import merge
from merge_models.merge.strategies import Midrange
one, other = {"w": torch.tensor([[1.0, 4.0]])}, {"w": torch.tensor([[3.0, 2.0]])}
assert merge([one, other], Midrange())["w"].tolist() == [[2.0, 3.0]]
"""


def test_a_new_strategy_takes_three_places_and_keeps_every_law(tmp_path: Path) -> None:
    place = copied_tree(tmp_path)
    listed, table = place / "merge/strategies/__init__.py", place / "tests/merge/strategies/cases.py"
    (place / "merge/strategies/midrange.py").write_text(NEW_FILE, encoding="utf-8")
    edit(listed, "    from merge_models.merge.strategies.model_stock import", TYPED)
    edit(listed, '    "LogLinear": "log_linear",\n', HOME)
    edit(table, "    ModelStock,\n", IMPORT)
    edit(table, '    Case("model_stock-row",', ROW)
    assert changed(place) == [
        "merge/strategies/__init__.py",
        "merge/strategies/midrange.py",
        "tests/merge/strategies/cases.py",
    ]
    laws = [f"tests/merge/strategies/test_{name}.py" for name in ("laws", "carriers")]
    assert run_tests(place, *laws, "-k", "midrange or every_strategy or registry") >= 20
    run(place, "-c", MERGES)
    assert "midrange" in run(place, "-m", "merge_models.merge.cli", "methods")
    assert "\n## midrange\n" in run(place, "-m", "merge_models.merge.cli", "methods", "--markdown")
