"""The verdict, with its findings."""

from __future__ import annotations

from collections.abc import Sequence

from merge_models.evals.report.facts import (
    STATUS_MARKS,
    STATUS_WORDS,
    conclusion,
    facts,
)
from merge_models.evals.report.html import Html, name, prose, tag
from merge_models.evals.report.numbers import number, ranges
from merge_models.evals.schema import (
    Evaluation,
    Finding,
    Outcome,
    Status,
    Verdict,
)


def badge(status: Outcome) -> Html:
    """Returns a status by mark, word and colour, so that colour is never alone."""
    mark = tag("span", STATUS_MARKS[status], class_="mark", aria_hidden="true")
    return tag("span", mark, STATUS_WORDS[status], class_=f"badge {status.replace(' ', '-')}")


def _finding_badge(status: Status) -> Html:
    """A finding that decides nothing is a remark, not a clean bill of health."""
    return tag("span", "Remark", class_="badge remark") if status == "healthy" else badge(status)


def verdict(evaluation: Evaluation) -> Html:
    """Returns what a reader must know, on the first screen."""
    verdict = evaluation.verdict
    parents = [name(parent.name) for parent in evaluation.parents]
    origin = tag(
        "p",
        "Merge of ",
        _listed(parents),
        [", base ", name(evaluation.base.name)] if evaluation.base else None,
        class_="origin",
    )
    head = tag("h1", name(evaluation.merge.name))
    if verdict is None:
        return tag("div", head, origin, _fact_list(evaluation), class_="verdict none")
    score = f"score {number(verdict.score)}, " if verdict.score is not None else ""
    line = tag(
        "p", badge(verdict.status), " ", tag("span", f"{score}judged by {verdict.basis}", class_="basis")
    )
    summary = conclusion(verdict)
    return tag(
        "div",
        head,
        origin,
        line,
        tag("p", prose(summary), class_="summary") if summary else None,
        _fact_list(evaluation),
        _findings(verdict),
        _by_layer(verdict),
        _by_skill(verdict),
        class_=f"verdict {verdict.status}",
    )


def _listed(items: Sequence[Html]) -> list[object]:
    joined: list[object] = []
    for n, item in enumerate(items):
        if n:
            joined.append(" and " if n == len(items) - 1 else ", ")
        joined.append(item)
    return joined


def _fact_list(evaluation: Evaluation) -> Html | None:
    told = facts(evaluation)[:6]
    if not told:
        return None
    return tag(
        "dl",
        [
            tag("div", tag("dt", fact.label), tag("dd", tag("b", fact.value), tag("small", prose(fact.note))))
            for fact in told
        ],
        class_="facts",
    )


def _findings(found: Verdict) -> Html | None:
    if not found.findings and found.status == "not judged":
        return None
    if not found.findings:
        return tag("p", "No finding: every measured quantity is within its threshold.", class_="quiet")
    return tag(
        "section",
        tag("h2", "Findings", id="findings"),
        tag("ol", [tag("li", _finding(finding), class_=finding.status) for finding in found.findings]),
        class_="findings",
        aria_labelledby="findings",
    )


def _finding(finding: Finding) -> list[Html]:
    cause = finding.cause[:1].upper() + finding.cause[1:]
    decided = decision(finding)
    return [
        tag("h3", cause, " ", _finding_badge(finding.status)),
        tag("p", tag("span", prose(location(finding)), class_="where"), " ", prose(finding.evidence)),
        tag(
            "dl",
            tag("dt", "Threshold" if decided else "Source"),
            tag("dd", decided, " (" if decided else None, prose(finding.source), ")" if decided else None),
            tag("dt", "Remedy"),
            tag("dd", prose(finding.remedy)),
        ),
    ]


def location(finding: Finding) -> str:
    """Returns where it was found, as the opening of a sentence."""
    where = finding.where.rstrip(". ")
    return f"{where[:1].upper()}{where[1:]}:" if where else ""


def decision(finding: Finding) -> str:
    """Returns what was compared with what; empty for a finding without a threshold."""
    if finding.threshold is None:
        return ""
    measured_ = f"measured {number(finding.value)}, " if finding.value is not None else ""
    return f"{measured_}threshold {number(finding.threshold)}"


def _by_layer(found: Verdict) -> Html | None:
    if not found.by_layer:
        return None
    groups = {
        status: tuple(layer for layer, s in found.by_layer.items() if s == status) for status in STATUS_WORDS
    }
    words = "; ".join(f"{status}: {ranges(layers)}" for status, layers in groups.items() if layers)
    cells = [
        tag("i", class_=status, title=f"layer {layer}: {status}")
        for layer, status in sorted(found.by_layer.items())
    ]
    strip = tag("div", cells, class_="strip", aria_hidden="true")
    return tag("section", tag("h2", "By layer"), strip, tag("p", words, class_="quiet"), class_="by")


def _by_skill(found: Verdict) -> Html | None:
    if not found.by_skill:
        return None
    items = [tag("li", badge(status), " ", name(skill)) for skill, status in found.by_skill.items()]
    return tag("section", tag("h2", "By skill"), tag("ul", items, class_="skills"), class_="by")
