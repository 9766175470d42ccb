"""The verdict's rules on constructed evaluations: what decides, what explains, what is named."""

from __future__ import annotations

from typing import Any

import pytest

from merge_models.evals.inputs.lineage import unique_names
from merge_models.evals.judgement.score import domain_scores, drift_score
from merge_models.evals.judgement.thresholds import DEFAULT
from merge_models.evals.judgement.verdict import judged
from merge_models.evals.report import to_html, to_markdown
from merge_models.evals.schema import (
    ActivationDiagnosis,
    Calibration,
    Divergence,
    Estimate,
    Evaluation,
    Generation,
    Head,
    ModelRef,
    Recovery,
    SiteActivations,
    SiteStatistics,
    TaskDiagnosis,
    TaskScore,
    TensorWeights,
    WeightDiagnosis,
)

ENTROPY = 3.0


def estimate(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value=value)


def models(parents: int = 2, *, base: bool = True) -> tuple[ModelRef, ...]:
    refs = [ModelRef(name="merge", role="merge")]
    refs += [ModelRef(name=f"p{i}", role="parent", weight=1 / parents) for i in range(parents)]
    return tuple(refs + ([ModelRef(name="base", role="base")] if base else []))


def site(
    layer: int, variance: float = 1.0, rank: float = 1.0, drift: float = 0.1, *, finite: bool = True
) -> SiteActivations:
    known = SiteStatistics()
    return SiteActivations(
        site="residual",
        layer=layer,
        module=f"layers.{layer}",
        merge=SiteStatistics(finite=finite),
        parents=(known, known),
        variance_ratio=estimate(variance),
        effective_rank_ratio=estimate(rank),
        drift=(drift, drift),
    )


def head(kl: dict[str, tuple[float, float]], loss: dict[str, tuple[float, float]]) -> Head:
    """``kl`` and ``loss``: by domain, of p0 and p1."""
    one = Estimate(value=0.0)
    return Head(
        loss_by_domain={f"p{i}": {d: values[i] for d, values in loss.items()} for i in (0, 1)},
        divergences=tuple(
            Divergence(
                model=f"p{i}",
                kl=one,
                js=one,
                fisher_rao=one,
                top1_agreement=one,
                kl_by_domain={d: values[i] for d, values in kl.items()},
            )
            for i in (0, 1)
        ),
    )


def activations(
    sites: tuple[SiteActivations, ...] = (site(0), site(1), site(2)), predictions: Head | None = None
) -> ActivationDiagnosis:
    domains = list(predictions.loss_by_domain["p0"]) if predictions else ["text"]
    record = Calibration(
        source="x",
        digest="0",
        sequences=1,
        tokens=9,
        seed=0,
        domains=dict.fromkeys(domains, 9),
        unigram_entropy=dict.fromkeys(domains, ENTROPY),
    )
    return ActivationDiagnosis(calibration=record, sites=sites, head=predictions, sample=9)


def evaluation(**parts: Any) -> Evaluation:
    parts.setdefault("models", models())
    return judged(Evaluation(created="now", **parts))


def causes(found: Evaluation) -> set[str]:
    assert found.verdict is not None
    return {f.cause for f in found.verdict.findings}


EVEN = {"math": (1.0, 2.0), "code": (2.0, 1.0)}
"""Losses: p0 knows maths, p1 code; each saves 2 nats over guessing by frequency."""


KEPT = head({"math": (0.0, 9.0), "code": (9.0, 0.0)}, EVEN)
LOST = head({"math": (2.0, 9.0), "code": (9.0, 2.0)}, EVEN)


@pytest.mark.parametrize(
    ("lost", "status"),
    [
        (0.0, "healthy"),
        (0.04, "healthy"),
        (0.06, "degraded"),
        (0.39, "degraded"),
        (0.41, "collapsed"),
        (3.0, "collapsed"),
    ],
)
def test_score_is_the_share_lost_and_decides(lost: float, status: str) -> None:
    far = 9.0
    predictions = head({"math": (2 * lost, far), "code": (far, 2 * lost)}, EVEN)
    verdict = evaluation(activations=activations(predictions=predictions)).verdict
    assert verdict is not None
    assert verdict.score == pytest.approx(lost)
    assert verdict.status == status
    assert verdict.basis == "activations"
    assert set(verdict.by_skill) == {"math", "code"}


def test_score_takes_each_domains_best_parent() -> None:
    predictions = head({"math": (0.2, 5.0), "code": (5.0, 0.4)}, EVEN)
    scores = domain_scores(activations(predictions=predictions), models()[1:3])
    assert [(s.domain, s.reference, s.kl) for s in scores] == [("math", "p0", 0.2), ("code", "p1", 0.4)]


def test_domains_that_no_parent_knows_are_left_out() -> None:
    predictions = head({"math": (0.0, 0.0), "code": (9.0, 9.0)}, {"math": (1.0, 1.0), "code": (2.9, 3.5)})
    found = evaluation(activations=activations(predictions=predictions))
    assert found.verdict is not None
    assert found.verdict.status == "healthy" and list(found.verdict.by_skill) == ["math"]


def test_no_known_domain_falls_back_to_activations() -> None:
    predictions = head({"code": (9.0, 9.0)}, {"code": (2.9, 3.5)})
    sites = (site(0), site(1, drift=2.0))
    found = evaluation(activations=activations(sites, predictions))
    assert found.verdict is not None and found.verdict.status == "collapsed"
    assert found.verdict.score == drift_score(found) == pytest.approx(2.0)
    assert any("foreign" in note for note in found.notes)


def test_one_lost_parent_is_named() -> None:
    predictions = head({"math": (0.0, 0.0), "code": (9.0, 1.0)}, EVEN)
    found = evaluation(activations=activations(predictions=predictions))
    lost = next(f for f in found.verdict.findings if f.cause == "parent lost")  # type: ignore[union-attr]
    assert "p1" in lost.where and "code" in lost.where and lost.status == "degraded"


def test_variance_collapse_names_its_layers_and_the_remedy() -> None:
    sites = (site(0), site(1, 0.45), site(2, 0.3), site(3, 1.0))
    found = evaluation(activations=activations(sites))
    assert found.verdict is not None
    finding = next(f for f in found.verdict.findings if f.cause == "variance collapse")
    assert finding.layers == (1, 2) and "layers 1-2" in finding.where
    assert finding.value == pytest.approx(0.3) and finding.threshold == DEFAULT.variance_low
    assert "repair" in finding.remedy
    assert found.verdict.by_layer == {0: "healthy", 1: "collapsed", 2: "collapsed", 3: "healthy"}


def test_variance_explains_but_does_not_decide_where_predictions_are_kept() -> None:
    predictions = head({"math": (0.0, 9.0), "code": (9.0, 0.0)}, EVEN)
    found = evaluation(activations=activations((site(0, 0.3),), predictions))
    assert found.verdict is not None and found.verdict.status == "healthy"
    assert causes(found) == {"variance collapse"}


def test_rank_collapse_without_predictions() -> None:
    found = evaluation(activations=activations((site(0), site(1, rank=0.2))))
    assert "rank collapse" in causes(found)
    assert found.verdict is not None and found.verdict.status == "collapsed"


@pytest.mark.parametrize("where", ["weights", "activations"])
def test_nan_is_a_verdict(where: str) -> None:
    tensor = TensorWeights(name="w", layer=4, kind="w", shape=(2, 2), finite=False)
    parts: dict[str, Any] = (
        {"weights": WeightDiagnosis(tensors=(tensor,), depth=())}
        if where == "weights"
        else {"activations": activations((site(0), site(4, finite=False)))}
    )
    found = evaluation(**parts)
    assert found.verdict is not None and found.verdict.status == "collapsed"
    assert next(f for f in found.verdict.findings if f.cause == "not finite").layers == (4,)


@pytest.mark.parametrize(
    ("ratios", "cause"),
    [
        ({"norm_ratio": 0.5}, "norm shrinkage"),
        ({"norm_ratio": 1.5}, "norm blow-up"),
        ({"delta_norm_ratio": 0.3}, "norm shrinkage"),
        ({"delta_norm_ratio": 4.0}, "norm blow-up"),
    ],
)
def test_weights_screen_and_never_call_it_collapsed(ratios: dict[str, float], cause: str) -> None:
    found = evaluation(weights=WeightDiagnosis(tensors=(), depth=(), **ratios))  # type: ignore[arg-type]
    assert found.verdict is not None
    assert (causes(found), found.verdict.status, found.verdict.basis) == ({cause}, "degraded", "weights")


@pytest.mark.parametrize(
    ("ratio", "says"),
    [
        (0.0, "the merge is the base"),
        (5e-324, "the merge is the base"),
        (1e-3, "the merge is the base"),
        (0.25, " 4 times as large"),
        (4.0, "multiply lambda (or the weights) by about 0.25"),
    ],
)
def test_the_remedy_fits_what_is_left_of_the_deltas(ratio: float, says: str) -> None:
    found = evaluation(weights=WeightDiagnosis(tensors=(), depth=(), delta_norm_ratio=ratio))
    assert found.verdict is not None
    (finding,) = found.verdict.findings
    assert says in finding.remedy


@pytest.mark.parametrize(
    ("measured", "says", "never"),
    [
        ({"delta_norm_ratio": 5.8, "unexplained": 0.88}, "88% of the change from the base", "multiply"),
        ({"delta_norm_ratio": 5.8, "unexplained": 0.01}, "multiply lambda", "density"),
        ({"norm_ratio": 2.0}, "let the weights sum to 1", "no norm"),
        (
            {"norm_ratio": 1.0, "delta_norm_ratio": 0.5, "unexplained": 0.1},
            "no norm explains",
            "lower lambda",
        ),
    ],
)
def test_remedies_do_not_contradict_each_other(measured: dict[str, float], says: str, never: str) -> None:
    found = evaluation(
        activations=activations((site(0, rank=0.1),), LOST),
        weights=WeightDiagnosis(tensors=(), depth=(), **measured),  # type: ignore[arg-type]
        tasks=TaskDiagnosis(
            generation=tuple(
                Generation(model=name, n=10, empty=share, looping=0, low_distinct=0, distinct2=0.9)
                for name, share in (("merge", 0.9), ("p0", 0.1))
            )
        ),
    )
    assert found.verdict is not None
    remedies = {f.cause: f.remedy for f in found.verdict.findings}
    assert says in remedies["divergence from all"] and never not in remedies["divergence from all"]
    too_long = measured.get("delta_norm_ratio", 1) > DEFAULT.delta_norm_high
    assert ("lower lambda" in remedies["degenerate text"]) == too_long
    assert ("lower lambda" in remedies["rank collapse"]) == too_long


def test_a_merge_that_is_its_base_is_not_healthy_unless_predictions_say_so() -> None:
    weights = WeightDiagnosis(tensors=(), depth=(), delta_norm_ratio=0.0)
    near = evaluation(weights=weights, activations=activations())
    kept = head({"math": (0.0, 9.0), "code": (9.0, 0.0)}, EVEN)
    same = evaluation(weights=weights, activations=activations((site(0),), kept))
    assert near.verdict is not None and near.verdict.status == "degraded"
    assert same.verdict is not None and same.verdict.status == "healthy"


@pytest.mark.parametrize(
    ("ratio", "parents", "says"),
    [
        (2.0, 2, "multiply lambda (or the weights) by about 0.5"),
        (1.02, 2, "no norm explains it: merge the parents in pairs"),
        (0.0, 2, "no norm explains it"),
        (1.02, 1, "one parent and no norm"),
    ],
)
def test_lambda_is_blamed_only_where_the_deltas_are_too_long(ratio: float, parents: int, says: str) -> None:
    found = evaluation(
        models=models(parents),
        activations=activations((), head({"math": (2.0, 2.0), "code": (2.0, 2.0)}, EVEN)),
        weights=WeightDiagnosis(tensors=(), depth=(), delta_norm_ratio=ratio),
    )
    assert found.verdict is not None
    assert says in next(f.remedy for f in found.verdict.findings if f.cause == "divergence from all")


def test_healthy_weights_find_nothing() -> None:
    found = evaluation(weights=WeightDiagnosis(tensors=(), depth=(), norm_ratio=1.0, delta_norm_ratio=1.0))
    assert causes(found) == set()


def test_dominance_is_a_remark_and_muddle_needs_many_parents() -> None:
    one = WeightDiagnosis(tensors=(), depth=(), effective_parents=1.01)
    found = evaluation(weights=one)
    assert causes(found) == {"single-parent dominance"}
    assert found.verdict is not None and found.verdict.status == "healthy"
    many = WeightDiagnosis(tensors=(), depth=(), effective_parents=5.9, delta_norm_ratio=0.4)
    assert "muddled middle" in causes(evaluation(models=models(6), weights=many))
    assert "muddled middle" not in causes(evaluation(models=models(2), weights=many))


def test_overflow_is_not_suspected_where_weights_are_not_finite() -> None:
    tensor = TensorWeights(name="w", layer=4, kind="w", shape=(2, 2), finite=False)
    broken = WeightDiagnosis(tensors=(tensor,), depth=())
    for weights, says in ((broken, "mend the weights"), (None, "overflow")):
        found = evaluation(weights=weights, activations=activations((site(4, finite=False),)))
        assert found.verdict is not None
        assert says in found.verdict.findings[-1].remedy


def answers(scores: dict[str, float], task: str = "adding", metric: str = "exact match") -> TaskDiagnosis:
    return TaskDiagnosis(
        scores=tuple(
            TaskScore(
                task=task,
                metric=metric,
                higher_is_better=True,
                model=model,
                score=Estimate(value=value, low=max(value - 0.1, 0), high=min(value + 0.1, 1)),
                n=60,
            )
            for model, value in scores.items()
        )
    )


NOWHERE = (SiteActivations(site="embedding", layer=None, module="embed", merge=SiteStatistics(), parents=()),)
"""Sites of models of another depth: none inside is shared."""

UNKNOWN = {"math": (4.0, 3.5), "code": (5.0, 6.0)}
"""Losses of parents that know nothing of the text: guessing by frequency costs 3 nats."""


@pytest.mark.parametrize("predictions", [None, head({"math": (9.0, 9.0), "code": (9.0, 9.0)}, UNKNOWN)])
def test_what_could_not_be_compared_is_not_called_healthy(predictions: Head | None) -> None:
    weights = WeightDiagnosis(tensors=(), depth=(), norm_ratio=1.0)
    found = evaluation(activations=activations(NOWHERE, predictions), weights=weights)
    assert found.verdict is not None
    assert (found.verdict.status, found.verdict.score) == ("not judged", None)
    assert "--data" in found.verdict.summary and "--tasks" in found.verdict.summary
    assert Evaluation.from_json(found.to_json()) == found
    assert "Not judged" in to_markdown(found) and "not-judged" in to_html(found)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ({}, "not judged"),
        ({"weights": WeightDiagnosis(tensors=(), depth=())}, "not judged"),
        ({"weights": WeightDiagnosis(tensors=(), depth=(), norm_ratio=1.0)}, "healthy"),
        ({"activations": activations()}, "healthy"),
        ({"activations": activations(NOWHERE, KEPT)}, "healthy"),
        ({"activations": activations(NOWHERE, LOST)}, "collapsed"),
        ({"activations": activations((*NOWHERE, site(1, finite=False)))}, "collapsed"),
    ],
)  # fmt: skip
def test_any_evidence_is_enough_to_judge_by(parts: dict[str, Any], status: str) -> None:
    found = evaluation(**parts)
    assert found.verdict is not None
    assert found.verdict.status == status, found.verdict.summary


@pytest.mark.parametrize(
    ("scores", "status"),
    [
        ({"merge": 0.0, "p0": 0.9, "p1": 0.1}, "collapsed"),
        ({"merge": 0.5, "p0": 0.9, "p1": 0.1}, "degraded"),
        ({"merge": 0.85, "p0": 0.9, "p1": 0.1}, "healthy"),
        ({"merge": 0.0, "p0": 0.1, "p1": 0.0}, "not judged"),  # no parent has the skill
        ({"p0": 0.9, "p1": 0.1}, "not judged"),
    ],
)
def test_exact_answers_judge_where_nothing_else_can(scores: dict[str, float], status: str) -> None:
    family = models(base=False)
    found = evaluation(models=family, activations=activations(NOWHERE), tasks=answers(scores))
    assert found.verdict is not None and found.verdict.status == status
    assert found.verdict.by_skill == ({} if status == "not judged" else {"adding": status})
    compared = evaluation(models=family, activations=activations(), tasks=answers(scores))
    assert compared.verdict is not None and compared.verdict.by_skill == {}, "an average of experts may lose"
    chosen = answers(scores, metric="accuracy")
    by_chance = evaluation(models=family, activations=activations(NOWHERE), tasks=chosen)
    assert by_chance.verdict is not None and by_chance.verdict.status == "not judged"


@pytest.mark.parametrize(("own", "said"), [(2.9, False), (3.0, True), (7.0, True)])
def test_a_merge_that_does_not_beat_guessing_says_so(own: float, said: bool) -> None:
    predictions = head({"math": (9.0, 9.0)}, {"math": UNKNOWN["math"]})
    losses = {**predictions.loss_by_domain, "merge": {"math": own}}
    predictions = predictions.model_copy(update={"loss_by_domain": losses})
    found = evaluation(activations=activations(NOWHERE, predictions))
    told = [note for note in found.notes if "no better than guessing" in note]
    assert len(told) == said
    assert all(f"{own:.3g}" in note and "best parent 3.5" in note for note in told)


def test_tasks_name_the_skill_and_the_text() -> None:
    tasks = TaskDiagnosis(
        recovery=(
            Recovery(task="adding", metric="accuracy", best_parent="p1", reference="base", fraction=0.1),
            Recovery(task="sorting", metric="accuracy", best_parent="p0", reference="base", fraction=0.95),
        ),
        generation=tuple(
            Generation(model=name, n=10, empty=0.0, looping=share, low_distinct=0.0, distinct2=0.9)
            for name, share in (("merge", 0.9), ("p0", 0.1), ("p1", 0.2))
        ),
    )
    found = evaluation(activations=activations(), tasks=tasks)
    assert found.verdict is not None
    assert found.verdict.by_skill == {"adding": "collapsed", "sorting": "healthy"}
    assert {"parent lost", "degenerate text"} <= causes(found)
    assert (found.verdict.status, found.verdict.basis) == ("collapsed", "activations and tasks")


def test_every_finding_cites_evidence_threshold_source_and_remedy() -> None:
    sites = (site(0, 0.1, 0.2, 3.0),)
    weights = WeightDiagnosis(tensors=(), depth=(), norm_ratio=0.5, delta_norm_ratio=9.0)
    found = evaluation(activations=activations(sites), weights=weights)
    assert found.verdict is not None and len(found.verdict.findings) >= 4
    for finding in found.verdict.findings:
        assert finding.evidence and finding.source and finding.remedy and finding.where
        assert finding.value is not None and finding.threshold is not None


def test_round_trip() -> None:
    found = evaluation(activations=activations((site(0, 0.1),)))
    assert Evaluation.from_json(found.to_json()) == found


def test_names_become_unique() -> None:
    assert unique_names(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
