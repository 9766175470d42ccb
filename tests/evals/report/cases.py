"""Evaluations as the diagnostics make them, for reports: healthy, damaged, partial, hostile, large, tiny.

Numbers follow simple laws of depth with seeded noise, so that a page of them looks like a real one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from merge_models.evals.schema import (
    ActivationDiagnosis,
    Calibration,
    DepthWeights,
    Divergence,
    Estimate,
    Evaluation,
    Finding,
    Generation,
    Head,
    InformationDiagnosis,
    LayerRepair,
    ModelRef,
    OInformation,
    Recovery,
    RepairReport,
    Site,
    SiteActivations,
    SiteStatistics,
    Status,
    TaskDiagnosis,
    TaskScore,
    TensorWeights,
    Verdict,
    WeightDiagnosis,
)

KINDS = (
    ("self_attn.q_proj.weight", (576, 576)),
    ("self_attn.k_proj.weight", (192, 576)),
    ("self_attn.v_proj.weight", (192, 576)),
    ("self_attn.o_proj.weight", (576, 576)),
    ("mlp.gate_proj.weight", (1536, 576)),
    ("mlp.up_proj.weight", (1536, 576)),
    ("mlp.down_proj.weight", (576, 1536)),
)
DOMAINS = {"prose": 2048, "code": 2048, "maths": 2048, "languages": 2048}
NASTY = (
    "</script><script>window.broken=1</script>",
    "<img src=x onerror=window.broken=1>",
    "a|b`c*d_e[link](javascript:alert(1))<!--",
    "\u202eevil\u202c\x1b[31mred\x00\nnext # heading",
    "![x](https://example.com/x.png) @everyone www.example.com " + "long" * 200,
)


def estimate(value: float, spread: float = 0.02) -> Estimate:
    return Estimate(value=value, low=value - abs(value) * spread, high=value + abs(value) * spread)


def statistics(rng: random.Random, variance: float, rank: float, finite: bool = True) -> SiteStatistics:
    if not finite:
        return SiteStatistics(finite=False)
    rank *= 1 + 0.02 * rng.gauss(0, 1)
    return SiteStatistics(
        variance=variance,
        effective_rank=rank,
        effective_rank_variance=rank * 0.42,
        participation_ratio=rank * 0.2,
        stable_rank=rank * 0.08,
        mean_cosine=0.2 + 0.05 * rng.random(),
        dead_units=0.0,
        massive_units=(3, 97) if variance > 3 else (),
    )


def site(
    rng: random.Random, kind: Site, layer: int | None, parents: int, base: bool, damage: float, depth: float
) -> SiteActivations:
    """One site whose variance falls by ``damage`` times ``depth``."""
    scale = {"embedding": 0.1, "residual": 0.3 + 4 * depth, "attention": 0.4, "mlp": 0.6 + depth}[kind]
    rank = {"embedding": 300, "residual": 220 - 60 * depth, "attention": 150, "mlp": 260}[kind]
    kept = math.exp(-damage * depth * 1.6) * (1 + 0.012 * rng.gauss(0, 1))
    thin = math.exp(-damage * depth * 0.9) * (1 + 0.01 * rng.gauss(0, 1))
    module = {"residual": "", "attention": ".self_attn", "mlp": ".mlp", "embedding": ""}[kind]
    others = tuple(
        statistics(rng, scale * (1 + 0.08 * (n - (parents - 1) / 2) * depth + 0.02 * rng.random()), rank)
        for n in range(parents)
    )
    return SiteActivations(
        site=kind,
        layer=layer,
        module="model.embed_tokens" if layer is None else f"model.layers.{layer}{module}",
        merge=statistics(rng, scale * kept, rank * thin),
        parents=others,
        base=statistics(rng, scale * 0.93, rank * 0.97) if base else None,
        variance_ratio=estimate(kept),
        variance_ratio_p5=kept * 0.6,
        effective_rank_ratio=estimate(thin, 0.015),
        cka=tuple(max(0.0, 1 - (0.015 + damage * 0.3) * depth * (1 + 0.4 * n)) for n in range(parents)),
        drift=tuple((0.05 + damage * 0.5) * depth * (1 + 0.3 * n) for n in range(parents)),
    )


def tensor(
    rng: random.Random, kind: str, shape: tuple[int, ...], layer: int, parents: int, base: bool, damage: float
) -> TensorWeights:
    ratio = (1 - 0.25 * damage) * (1 + 0.02 * rng.gauss(0, 1))
    delta = (0.72 - 0.2 * damage) * (1 + 0.06 * rng.gauss(0, 1))
    share = [abs(1 + 0.25 * rng.gauss(0, 1)) for _ in range(parents)]
    parts = tuple(s / sum(share) for s in share)
    conflict = 0.31 + 0.12 * rng.random() + 0.1 * damage
    return TensorWeights(
        name=f"model.layers.{layer}.{kind}",
        layer=layer,
        kind=kind,
        shape=shape,
        norm=20 * ratio,
        norm_ratio=ratio,
        delta_norm=delta if base else None,
        delta_norm_ratio=delta if base else None,
        spectral_norm=3.1 * ratio,
        spectral_norm_ratio=ratio * (1 + 0.02 * rng.gauss(0, 1)),
        stable_rank=40.0,
        stable_rank_ratio=1 + 0.04 * rng.gauss(0, 1),
        effective_rank=310.0,
        effective_rank_ratio=(1 + 0.06 * damage) * (1 + 0.01 * rng.gauss(0, 1)),
        delta_effective_rank=410.0 if base else None,
        delta_effective_rank_ratio=1.12 + 0.03 * rng.gauss(0, 1) if base else None,
        rank_method="exact",
        hyperspherical_energy=0.72,
        hyperspherical_energy_ratio=1 + 0.006 * rng.gauss(0, 1),
        sign_conflict=conflict if base else None,
        subspace_overlap=0.05 * rng.random(),
        largest_angle=0.02,
        unique=True,
        parent_share=parts,
        effective_parents=math.exp(-sum(p * math.log(p) for p in parts)),
        unexplained=0.002 + 0.2 * damage * rng.random(),
    )


def outside(name: str, shape: tuple[int, ...]) -> TensorWeights:
    return TensorWeights(
        name=name, layer=None, kind=name, shape=shape, norm=100.0, norm_ratio=0.998, effective_parents=1.98
    )


def weight_diagnosis(
    rng: random.Random, layers: int, parents: int, base: bool, damage: float
) -> WeightDiagnosis:
    inner = tuple(
        tensor(rng, kind, shape, layer, parents, base, damage)
        for layer in range(layers)
        for kind, shape in KINDS
    )
    cosine = tuple(tuple(1.0 if i == j else 0.12 for j in range(parents)) for i in range(parents))
    return WeightDiagnosis(
        tensors=(
            outside("model.embed_tokens.weight", (49152, 576)),
            *inner,
            outside("model.norm.weight", (576,)),
        ),
        depth=tuple(DepthWeights(layer=n, norm_ratio=1.0) for n in range(layers)),
        cosine=cosine,
        delta_norms=tuple(0.021 + 0.004 * n for n in range(parents)) if base else None,
        norm_ratio=1 - 0.25 * damage,
        delta_norm_ratio=0.73 if base else None,
        sign_conflict=0.37 if base else None,
        parent_share=tuple(1 / parents for _ in range(parents)),
        effective_parents=parents * 0.985,
        unexplained=0.004,
        seconds=7.31,
    )


def head(models: tuple[ModelRef, ...], damage: float) -> Head:
    merge, *others = models
    losses = {m.name: estimate(3.02 + 0.11 * n, 0.01) for n, m in enumerate(others)}
    losses[merge.name] = estimate(3.05 + 4.5 * damage, 0.01)
    by_domain = {
        name: {d: e.value * (0.8 + 0.15 * k) for k, d in enumerate(DOMAINS)} for name, e in losses.items()
    }
    return Head(
        entropy={name: estimate(e.value * 0.95, 0.01) for name, e in losses.items()},
        loss=losses,
        loss_by_domain=by_domain,
        divergences=tuple(
            Divergence(
                model=m.name,
                kl=estimate(0.06 + 0.02 * n + 3.1 * damage, 0.05),
                js=estimate(min(0.65, 0.014 + 0.004 * n + 0.5 * damage), 0.05),
                fisher_rao=estimate(0.3 + damage, 0.03),
                top1_agreement=estimate(max(0.02, 0.87 - 0.8 * damage), 0.02),
                kl_by_domain={d: 0.05 + 0.01 * k + 3 * damage for k, d in enumerate(DOMAINS)},
            )
            for n, m in enumerate(others)
        ),
        parents_js=0.031,
    )


def activation_diagnosis(
    rng: random.Random, models: tuple[ModelRef, ...], layers: int, damage: float, with_head: bool
) -> ActivationDiagnosis:
    parents = sum(m.role == "parent" for m in models)
    base = any(m.role == "base" for m in models)
    kinds: tuple[Site, ...] = ("attention", "mlp", "residual")
    sites = [site(rng, "embedding", None, parents, base, 0.0, 0.0)]
    for layer in range(layers):
        for kind in kinds:
            sites.append(site(rng, kind, layer, parents, base, damage, (layer + 1) / layers))
    return ActivationDiagnosis(
        calibration=Calibration(
            source="built-in", digest="9f" * 32, sequences=32, tokens=8192 - 32, seed=0, domains=DOMAINS
        ),
        sites=tuple(sites),
        head=head(models, damage) if with_head else None,
        sample=1024,
        seconds=41.7,
    )


def information_diagnosis(
    rng: random.Random, models: tuple[ModelRef, ...], layers: int, damage: float
) -> InformationDiagnosis:
    def system(what: str, layer: int, value: float) -> OInformation:
        return OInformation(
            what=what,
            layer=layer,
            variables=3,
            dimensions=24,
            samples=1024,
            o_information=Estimate(value=value, low=value - 0.15, high=value + 0.15),
            tc=4.2,
            dtc=4.2 - value,
            s_information=8.4 - value,
            null_mean=0.01,
            null_std=0.09,
            reading="redundant" if value > 0.2 else "indistinguishable",
        )

    return InformationDiagnosis(
        between=tuple(
            system("parents and merge", n, 3.1 - damage * 2.5 * (n + 1) / layers + 0.1 * rng.gauss(0, 1))
            for n in range(layers)
        ),
        within={
            m.name: tuple(
                system("groups of units", n, 1.4 + 0.8 * n / layers + 0.05 * rng.gauss(0, 1))
                for n in range(layers)
            )
            for m in models
        },
    )


def task_diagnosis(models: tuple[ModelRef, ...], damage: float) -> TaskDiagnosis:
    merge, *others = models
    skills = ("arithmetic", "spelling", "logic")
    scores: list[TaskScore] = []
    recovery: list[Recovery] = []
    parents = [m for m in models if m.role == "parent"]
    for k, skill in enumerate(skills):
        best = parents[k % len(parents)]
        fraction = max(0.0, 0.97 - damage * (1 + 0.2 * k))
        for m in models:
            value = 0.91 if m is best else 0.31 if m.role == "parent" else 0.25
            if m is merge:
                value = 0.25 + 0.66 * fraction
            scores.append(
                TaskScore(
                    task=skill,
                    metric="accuracy",
                    higher_is_better=True,
                    model=m.name,
                    score=estimate(value, 0.04),
                    n=400,
                )
            )
        recovery.append(
            Recovery(
                task=skill,
                metric="accuracy",
                best_parent=best.name,
                reference=others[-1].name,
                fraction=fraction,
            )
        )
    for domain in DOMAINS:
        for n, m in enumerate(models):
            value = 20.4 * math.exp(5 * damage) if m is merge else 21.0 + n
            scores.append(
                TaskScore(
                    task=domain,
                    metric="perplexity",
                    higher_is_better=False,
                    model=m.name,
                    score=Estimate(value=value),
                    n=2040,
                )
            )
    fractions = [r.fraction for r in recovery if r.fraction is not None]
    text = (
        "the the the the the the the the" if damage > 0.5 else "up the hill, and there they sat down to eat."
    )
    return TaskDiagnosis(
        scores=tuple(scores),
        recovery=tuple(recovery),
        mean_recovery=sum(fractions) / len(fractions),
        least_recovery=min(fractions),
        least_recovered=skills[fractions.index(min(fractions))],
        generation=tuple(
            Generation(
                model=m.name,
                n=32,
                empty=0.0,
                looping=0.94 if damage > 0.5 and m is merge else 0.03,
                low_distinct=0.81 if damage > 0.5 and m is merge else 0.06,
                distinct2=0.11 if damage > 0.5 and m is merge else 0.88,
                samples=(
                    ("The two friends walked ", text if m is merge else "slowly home."),
                    (
                        "def add(a, b):\n    return ",
                        "a + b" if damage < 0.5 else "return return return return",
                    ),
                ),
            )
            for m in models[:2]
        ),
    )


ALL_FINDINGS: tuple[Finding, ...] = (
    Finding(
        cause="variance collapse",
        status="collapsed",
        where="Layers 5 to 11, residual stream.",
        layers=tuple(range(5, 12)),
        evidence="The variance ratio falls from 0.86 at layer 1 to 0.22 at layer 11 [0.21, 0.23].",
        value=0.22,
        threshold=0.5,
        source="calibration on 72 merges; Jordan et al. 2023",
        remedy="The parents are not aligned. Merge about a base (`--base BASE -m task_arithmetic`), or run "
        "`merge-models repair OUT --parents A --parents B`.",
    ),
    Finding(
        cause="rank collapse",
        status="degraded",
        where="Layers 8 to 11.",
        layers=(8, 9, 10, 11),
        evidence="The effective-rank ratio is 0.43 at layer 11.",
        value=0.43,
        threshold=0.6,
        source="calibration on 72 merges",
        remedy="Use fewer parents, or `-m karcher --set origin=base`.",
    ),
    Finding(
        cause="divergence from all",
        status="collapsed",
        where="Predictions.",
        evidence="KL to the nearest parent is 3.0 nats; the parents are 0.03 apart (JS).",
        value=3.0,
        threshold=1.0,
        source="calibration on 72 merges",
        remedy="Start from the nearest parent with smaller `lambda`.",
    ),
    Finding(
        cause="degenerate text",
        status="collapsed",
        where="Greedy continuations.",
        evidence="94 % of 32 continuations loop; the parents' 3 %.",
        value=0.94,
        threshold=0.3,
        source="calibration on 72 merges",
        remedy="See the findings above.",
    ),
    Finding(
        cause="parent lost",
        status="degraded",
        where="Skill logic.",
        evidence="Recovery of the best parent's skill is 0.0.",
        value=0.0,
        threshold=0.5,
        source="convention",
        remedy="Give the parent more weight: `--weights .3,.7`.",
    ),
    Finding(
        cause="muddled middle",
        status="healthy",
        where="Whole model.",
        evidence="Two parents of weight 0.5 each.",
        source="remark",
        remedy="Nothing to do.",
    ),
)


def judge(status: Status, findings: tuple[Finding, ...], layers: int, score: float, basis: str) -> Verdict:
    words = {
        "healthy": "The merge keeps its parents' activations and predictions at every depth.",
        "degraded": "The merge works, but variance shrinks in the last third of its layers.",
        "collapsed": "The merge collapsed: activations shrink from layer 5 on, and its text loops.",
    }
    bad: dict[int, Status] = {n: f.status for f in findings for n in f.layers if f.status != "healthy"}
    return Verdict(
        status=status,
        score=score,
        basis="weights" if basis == "weights" else "activations and tasks",
        summary=words[status],
        findings=findings,
        by_skill={"arithmetic": status, "spelling": "healthy", "logic": status},
        by_layer={n: bad.get(n, "healthy") for n in range(layers)},
    )


def models_of(name: str, parents: int, base: bool, names: tuple[str, ...] = ()) -> tuple[ModelRef, ...]:
    given = names or (
        "smollm-maths",
        "smollm-code",
        "smollm-chat",
        "smollm-law",
        "smollm-poems",
        "smollm-news",
        "g",
    )
    refs = [ModelRef(name=name, role="merge", parameters=134_515_008)]
    refs += [
        ModelRef(name=given[n], role="parent", weight=1 / parents, parameters=134_515_008)
        for n in range(parents)
    ]
    if base:
        refs.append(ModelRef(name="smollm-base", role="base", parameters=134_515_008))
    return tuple(refs)


def evaluation(
    name: str = "smollm-merged",
    *,
    layers: int = 12,
    parents: int = 2,
    base: bool = True,
    damage: float = 0.0,
    status: Status = "healthy",
    findings: tuple[Finding, ...] = (),
    names: tuple[str, ...] = (),
    with_head: bool = True,
    seed: int = 0,
) -> Evaluation:
    """A whole evaluation of ``layers`` layers whose merge is as damaged as said (0: as its parents)."""
    rng = random.Random(seed)
    models = models_of(name, parents, base, names)
    repaired = tuple(
        LayerRepair(
            module=f"model.layers.{n}.{part}",
            layer=n,
            variance_ratio_before=math.exp(-damage * 1.6 * (n + 1) / layers),
            variance_ratio_after=1 + 0.02 * rng.gauss(0, 1),
            folded_into=(f"model.layers.{n}.{part}.weight",),
        )
        for n in range(layers)
        for part in ("self_attn.o_proj", "mlp.down_proj")
    )
    return Evaluation(
        created="2026-11-21T12:00:00Z",
        versions={"merge-models": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        models=models,
        verdict=judge(status, findings, layers, 0.02 + 3 * damage, "activations"),
        weights=weight_diagnosis(rng, layers, parents, base, damage),
        activations=activation_diagnosis(rng, models, layers, damage, with_head),
        information=information_diagnosis(rng, models, layers, damage),
        tasks=task_diagnosis(models, damage) if with_head else None,
        repair=RepairReport(layers=repaired, loss_before=3.05 + 4.5 * damage, loss_after=3.2)
        if damage
        else None,
        notes=(),
    )


def healthy() -> Evaluation:
    return evaluation(layers=30)


def degraded() -> Evaluation:
    return evaluation(damage=0.25, status="degraded", findings=ALL_FINDINGS[1:2], parents=3)


def collapsed() -> Evaluation:
    return evaluation("soup of strangers", damage=0.95, status="collapsed", findings=ALL_FINDINGS)


def weights_only() -> Evaluation:
    whole = evaluation(base=False)
    judged = judge("healthy", (), 12, 0.1, "weights")
    return whole.model_copy(
        update={
            "activations": None,
            "information": None,
            "tasks": None,
            "verdict": judged,
            "notes": ("Activations were not asked for (`--weights-only`).",),
        }
    )


def encoder() -> Evaluation:
    return evaluation("minilm-merged", layers=6, with_head=False)


def not_finite() -> Evaluation:
    """A merge whose activations are NaN from layer 4 on, and one tensor with NaN."""
    whole = evaluation(damage=0.1, status="collapsed")
    assert whole.activations is not None and whole.weights is not None
    sites = tuple(
        s
        if s.layer is None or s.layer < 4
        else s.model_copy(
            update={
                "merge": SiteStatistics(finite=False),
                "variance_ratio": None,
                "variance_ratio_p5": None,
                "effective_rank_ratio": None,
                "cka": (None, None),
                "drift": (None, None),
            }
        )
        for s in whole.activations.sites
    )
    tensors = tuple(
        TensorWeights(name=t.name, layer=t.layer, kind=t.kind, shape=t.shape, finite=False)
        if t.layer == 4 and "down_proj" in t.name
        else t
        for t in whole.weights.tensors
    )
    finding = Finding(
        cause="not finite",
        status="collapsed",
        where="Layer 4, MLP.",
        layers=tuple(range(4, 12)),
        evidence="`model.layers.4.mlp.down_proj.weight` holds NaN; activations are NaN from layer 4 on.",
        source="definition",
        remedy="Merge again with `--dtype float32`.",
    )
    judged = judge("collapsed", (finding,), 12, 9.0, "activations").model_copy(update={"score": None})
    return whole.model_copy(
        update={
            "activations": whole.activations.model_copy(update={"sites": sites, "head": None}),
            "weights": whole.weights.model_copy(update={"tensors": tensors}),
            "information": None,
            "tasks": None,
            "repair": None,
            "verdict": judged,
        }
    )


def hostile() -> Evaluation:
    """Names, prompts and texts that try to break out of Markdown and HTML."""
    whole = evaluation(NASTY[0], names=NASTY[1:], parents=4, damage=0.4, status="degraded", layers=4)
    assert whole.tasks is not None and whole.weights is not None and whole.activations is not None
    finding = ALL_FINDINGS[0].model_copy(
        update={"where": NASTY[1], "evidence": NASTY[2], "remedy": NASTY[3], "source": NASTY[4]}
    )
    judged = Verdict(
        status="degraded",
        score=1.0,
        basis="activations",
        summary=NASTY[0],
        findings=(finding,),
        by_skill={NASTY[0]: "degraded", NASTY[2]: "healthy"},
        by_layer={0: "degraded"},
    )
    tensors = tuple(
        t.model_copy(update={"name": NASTY[0] + t.name, "kind": NASTY[n % 5] + t.kind})
        for n, t in enumerate(whole.weights.tensors)
    )
    scores = tuple(s.model_copy(update={"task": NASTY[2]}) for s in whole.tasks.scores)
    texts = tuple(
        g.model_copy(update={"samples": tuple((NASTY[n], NASTY[-n]) for n in range(5))})
        for g in whole.tasks.generation
    )
    calibration = whole.activations.calibration.model_copy(
        update={"source": NASTY[0], "domains": {NASTY[1]: 3}, "digest": NASTY[2]}
    )
    return whole.model_copy(
        update={
            "verdict": judged,
            "weights": whole.weights.model_copy(update={"tensors": tensors}),
            "tasks": whole.tasks.model_copy(
                update={"scores": scores, "generation": texts, "least_recovered": NASTY[3]}
            ),
            "activations": whole.activations.model_copy(update={"calibration": calibration}),
            "notes": NASTY,
            "versions": {NASTY[0]: NASTY[1]},
        }
    )


def deep() -> Evaluation:
    return evaluation(
        "eighty-layers", layers=80, parents=6, damage=0.3, status="degraded", findings=ALL_FINDINGS[:1]
    )


def single_layer() -> Evaluation:
    return evaluation("tiny", layers=1)


def bare() -> Evaluation:
    """Nothing measured at all."""
    return Evaluation(created="2026-11-21T12:00:00Z", models=models_of("nothing", 2, False))


CASES: dict[str, Callable[[], Evaluation]] = {
    "healthy": healthy,
    "degraded": degraded,
    "collapsed": collapsed,
    "weights only": weights_only,
    "encoder": encoder,
    "not finite": not_finite,
    "hostile": hostile,
    "deep": deep,
    "single layer": single_layer,
    "bare": bare,
}
