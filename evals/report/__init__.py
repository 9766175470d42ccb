"""Reports of an evaluation: Markdown for a model card, one self-contained page, tables of many merges.

Nothing here measures: a report says what an ``Evaluation`` holds, and what it lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merge_models.evals.report.comparison import Comparison
    from merge_models.evals.schema import Evaluation, Inspection


def to_markdown(record: Evaluation | Inspection | Comparison) -> str:
    """Returns a section for a model card: the verdict, findings and main tables.

    >>> from merge_models.evals.schema import Evaluation, ModelRef
    >>> record = Evaluation(created="now", models=(ModelRef(name="m", role="merge"),))
    >>> to_markdown(record).splitlines()[0]
    '## Evaluation of the merge'
    """
    from merge_models.evals.report.inspection import inspection_markdown
    from merge_models.evals.report.markdown import markdown
    from merge_models.evals.schema import Evaluation, Inspection

    if isinstance(record, Inspection):
        return inspection_markdown(record)
    return markdown(record) if isinstance(record, Evaluation) else record.to_markdown()


def to_html(record: Evaluation | Comparison) -> str:
    """Returns one self-contained page: no network, charts inside.

    >>> from merge_models.evals.schema import Evaluation, ModelRef
    >>> record = Evaluation(created="now", models=(ModelRef(name="m", role="merge"),))
    >>> to_html(record)[:15]
    '<!doctype html>'
    """
    from merge_models.evals.report.page import page
    from merge_models.evals.schema import Evaluation

    return page(record) if isinstance(record, Evaluation) else record.to_html()


def to_text(record: Inspection, width: int = 100) -> str:
    """Returns an inspection without markup, for a terminal of so many columns."""
    from merge_models.evals.report.inspection import inspection_text

    return inspection_text(record, width)
