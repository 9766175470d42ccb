"""Does the verdict follow the measured loss? Real merges of small trained nets, from harmless to destroyed.

    python -m benchmarks.calibration --dir DIR

Trains two families of nets (about five minutes of CPU; kept in DIR), makes every merge of ``damage_cases`` of
each, measures held-out loss on every skill, evaluates each merge as ``merge-models eval`` does on other text,
and prints how the score, each diagnostic and the verdict agree with the damage.

Damage is the share of the parents' knowledge that the merge lost, by measured loss: for each skill, (loss of
the merge - loss of the best parent) / (entropy of the characters - loss of the best parent), meaned over the
skills. Harmless is at most 0.03, destroyed at least 0.7. The score never sees these losses: it comes from
other text of the same languages.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.damage_cases import Case, cases
from benchmarks.small_nets import LANGUAGES, Language, losses, make_family, tokenizer
from merge_models.evals import Activations, TextSample, Weights, evaluate
from merge_models.evals.judgement.score import drift_score
from merge_models.evals.judgement.verdict import judged
from merge_models.evals.schema import Evaluation, SiteActivations, WeightDiagnosis

FAMILIES = ("llama", "gpt2")
MEASURED = (Weights(), Activations(information=False))
HARMLESS, DESTROYED = 0.03, 0.7


@dataclass(frozen=True)
class Outcome:
    """One merge: its measured damage, and what the evaluation said of it."""

    family: str
    name: str
    kind: str
    damage: float
    score: float | None
    status: str
    causes: tuple[str, ...]
    drift: float | None
    blind_status: str
    measures: dict[str, float | None]

    @property
    def is_harmless(self) -> bool:
        return self.damage <= HARMLESS

    @property
    def is_destroyed(self) -> bool:
        return self.damage >= DESTROYED


def main() -> None:
    """Trains, merges, measures, evaluates, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dir", type=Path, required=True, help="where nets are kept")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--seed", type=int, default=0, help="0 chose the thresholds; others test them")
    parser.add_argument("--json", type=Path, help="also write every outcome here")
    arguments = parser.parse_args()
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    outcomes = []
    for family in arguments.families.split(","):
        outcomes += run_family(family, arguments.dir, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    tell(outcomes)


def run_family(family: str, folder: Path, seed: int) -> list[Outcome]:
    """Every case of one family."""
    folders = make_family(family, folder, seed)
    text = calibration_file(folder / "calibration.jsonl")
    known = {name: losses(_load(path)) for name, path in folders.items()}
    entropy = {name: unigram_entropy(name) for name in LANGUAGES}
    outcomes = []
    for case in cases():
        out = folder / "merge"
        shutil.rmtree(out, ignore_errors=True)
        case.build(folders, out)
        outcome = _outcome(family, case, out, folders, text, known, entropy)
        print(f"{family:6} {case.name:40} {outcome.damage:7.3f} {outcome.status}", flush=True)
        outcomes.append(outcome)
    return outcomes


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def calibration_file(file: Path) -> Path:
    """Text of all languages that neither training nor the measured loss has seen."""
    rows = [
        {"domain": name, "text": Language(name).text(f"calibration {i}", 600)}
        for name in LANGUAGES
        for i in range(6)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


def unigram_entropy(language: str) -> float:
    """Of the language's characters, in nats."""
    ids = np.array(tokenizer()(Language(language).text("entropy", 20_000), verbose=False)["input_ids"])
    share = np.unique(ids, return_counts=True)[1] / len(ids)
    return float(-(share * np.log(share)).sum())


def _outcome(
    family: str,
    case: Case,
    out: Path,
    folders: dict[str, Path],
    text: Path,
    known: dict[str, dict[str, float]],
    entropy: dict[str, float],
) -> Outcome:
    best = {s: min(known[p][s] for p in case.parents) for s in LANGUAGES}
    own = losses(_load(out))
    damage = mean((own[s] - best[s]) / (entropy[s] - best[s]) for s in LANGUAGES)
    (out / "merge_manifest.json").unlink(missing_ok=True)
    evaluation = evaluate(
        out,
        [folders[p] for p in case.parents],
        folders[case.base] if case.base else None,
        measures=MEASURED,
        text=TextSample(text, tokens=4096, length=64),
    )
    blind = without_predictions(evaluation)
    assert evaluation.verdict and blind.verdict
    return Outcome(
        family,
        case.name,
        case.kind,
        damage,
        evaluation.verdict.score,
        evaluation.verdict.status,
        tuple(f.cause for f in evaluation.verdict.findings),
        drift_score(evaluation),
        blind.verdict.status,
        measures(evaluation),
    )


def without_predictions(evaluation: Evaluation) -> Evaluation:
    """The same evaluation as of a model without a head: what an encoder's verdict rests on."""
    assert evaluation.activations is not None
    activations = evaluation.activations.model_copy(update={"head": None})
    return judged(evaluation.model_copy(update={"activations": activations}))


def measures(evaluation: Evaluation) -> dict[str, float | None]:
    """Each diagnostic as one number that should grow with damage."""
    assert evaluation.activations is not None
    sites = evaluation.activations.sites
    weights = evaluation.weights
    return {
        "variance ratio, |log|, worst site": _worst(sites, lambda s: _log(s.variance_ratio)),
        "effective rank ratio, |log|, worst site": _worst(sites, lambda s: _log(s.effective_rank_ratio)),
        "1 - CKA to nearest parent, worst site": _worst(sites, lambda s: _far(s.cka)),
        "drift from the parents, worst site": drift_score(evaluation),
        **(_of_weights(weights) if weights else {}),
    }


def _of_weights(weights: WeightDiagnosis) -> dict[str, float | None]:
    rows: Sequence[Sequence[float | None]] = weights.cosine or ()
    cosines = [c for i, row in enumerate(rows) for c in row[:i]]
    return {
        "weights: norm ratio, |log|": _log(weights.norm_ratio),
        "weights: delta norm ratio, |log|": _log(weights.delta_norm_ratio),
        "weights: sign conflict": weights.sign_conflict,
        "weights: 1 - least cosine of parents": _far(cosines, least=True),
    }


def _worst(
    sites: Sequence[SiteActivations], value: Callable[[SiteActivations], float | None]
) -> float | None:
    return max((v for v in map(value, sites) if v is not None), default=None)


def _log(ratio: Any) -> float | None:
    number = getattr(ratio, "value", ratio)
    return abs(float(np.log(number))) if number else None


def _far(values: Sequence[float | None], *, least: bool = False) -> float | None:
    known = [v for v in values if v is not None]
    return (1 - (min(known) if least else max(known))) if known else None


def tell(outcomes: Sequence[Outcome]) -> None:
    """The tables."""
    from scipy.stats import rankdata

    def correlation(values: Sequence[float | None]) -> str:
        pairs = [(v, o.damage) for v, o in zip(values, outcomes, strict=True) if v is not None]
        ranks = [rankdata([pair[i] for pair in pairs]) for i in (0, 1)]
        rho = float(np.corrcoef(ranks)[0, 1]) if len(pairs) > 2 else float("nan")
        return f"{rho:6.3f}  ({len(pairs)} merges)"

    print(f"\n{len(outcomes)} merges; rank correlation with damage:")
    print(f"  {'score':45}{correlation([o.score for o in outcomes])}")
    for name in outcomes[0].measures:
        print(f"  {name:45}{correlation([o.measures[name] for o in outcomes])}")
    for title, status in (
        ("with predictions", lambda o: o.status),
        ("without predictions (as for encoders)", lambda o: o.blind_status),
    ):
        print(f"\nverdict {title}:")
        confusion(outcomes, status)


def confusion(outcomes: Sequence[Outcome], status: Callable[[Outcome], str]) -> None:
    """Verdicts by true class, and the errors that matter."""
    classes = {
        "harmless": [o for o in outcomes if o.is_harmless],
        "damaged": [o for o in outcomes if not o.is_harmless and not o.is_destroyed],
        "destroyed": [o for o in outcomes if o.is_destroyed],
    }
    print(f"  {'':12}{'healthy':>10}{'degraded':>10}{'collapsed':>10}")
    for name, members in classes.items():
        counts = Counter(status(o) for o in members)
        print(f"  {name:12}{counts['healthy']:10}{counts['degraded']:10}{counts['collapsed']:10}")
    missed = [o for o in classes["destroyed"] if status(o) == "healthy"]
    flagged = [o for o in classes["harmless"] if status(o) != "healthy"]
    print(f"  destroyed called healthy: {len(missed)} {[o.name for o in missed]}")
    share = len(flagged) / max(len(classes["harmless"]), 1)
    print(f"  harmless flagged: {share:.1%} {[f'{o.family} {o.name}' for o in flagged]}")


if __name__ == "__main__":
    main()
