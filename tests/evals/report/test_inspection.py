"""Parents before a merge, as tables."""

from __future__ import annotations

from merge_models.evals.report import to_markdown
from merge_models.evals.report.inspection import inspection_markdown
from merge_models.evals.schema import Inspection
from tests.evals.report.cases import NASTY, models_of
from tests.evals.report.reading import MARKDOWN, Reader


def test_an_inspection_as_tables() -> None:
    parents = models_of("x", 2, True, (NASTY[2], "b"))[1:]
    made = Inspection(
        models=parents,
        compatible=False,
        problems=(f"tensor `{NASTY[1]}` has other shapes",),
        cosine=((1.0, None), (None, 1.0)),
        delta_norms=(0.02, None),
        sign_conflict=0.4,
        curvature=1e-4,
        advice=(("linear", "the parents are `near`"),),
    )
    reader = Reader(MARKDOWN.render(inspection_markdown(made)))
    assert "Not compatible" in reader.words and "What fits" in reader.words
    assert {"script", "img", "a"}.isdisjoint(name for name, _ in reader.elements)
    alone = Inspection(models=parents, compatible=True)
    assert "They can be merged as they are" in to_markdown(alone)
