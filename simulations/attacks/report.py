"""What an attack came to, in tables and plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from simulations.attacks.guessing import ASSUMPTIONS, Bound
from simulations.attacks.inversion import Inversion
from simulations.attacks.membership import SMALL_RATES, Membership
from simulations.attacks.one_run import METERS, METHODS, VIEWS, Audit
from simulations.attacks.suite import Planted

LIMITS = (
    "A low bound proves nothing: a better attack, or more canaries, might say more. A bound above the claim, or an "
    "alarm, proves a fault, up to the stated confidence. The audit sees this training on this machine: it says nothing "
    "about another job, nor about what leaves a site by any other way than its updates."
)

BOUND_HEADING = ("attacker sees", *METHODS)
METER_HEADING = ("meter", "read", "due", "")
MEMBERSHIP_HEADING = (
    "training",
    "models",
    "AUC",
    *(f"TPR at {100 * rate:g} % FPR" for rate in SMALL_RATES),
    "epsilon",
)
INVERSION_HEADING = ("rebuilt from", "PSNR (dB)", "SSIM")
PLANTED_HEADING = ("fault", "claimed epsilon", "audited lower bound", "assuming nothing", "caught", "meters' alarms")


def audit_lines(audit: Audit) -> list[str]:
    """Return the verdict on an audit, sentence by sentence."""
    best, size = audit.best, audit.size
    lines = [
        f"Claimed: epsilon at most {audit.epsilon:.2f} at delta {audit.claim.delta:g}, for {size.rounds} rounds "
        f"({audit.claim.spending.steps} steps).",
        f"Attacked: epsilon is at least {best.epsilon:.2f}, with {100 * audit.confidence:g} % confidence "
        f"({size.gradient_canaries} gradient and {size.image_canaries} image canaries, each in by the toss of a coin).",
        f"The best attack saw {VIEWS[best.view]}: {best.evidence}. Its bound assumes {ASSUMPTIONS[best.method]}; "
        f"without any assumption epsilon is at least {audit.assuming_nothing:.2f} (Steinke et al. 2023).",
    ]
    if audit.refuted:
        lines.append("FAULT: this training is less private than it claims.")
    for reading in audit.readings:
        if reading.alarm:
            lines.append(
                f"FAULT: {reading.meter}: {reading.value:.4g} where {reading.expected:.4g} is due "
                f"(a right training does so with a probability of {reading.probability:.1g})."
            )
    if not audit.faulty:
        lines.append("No fault was found. " + _share(best, audit.epsilon))
    return [*lines, LIMITS]


def _share(best: Bound, claimed: float) -> str:
    return (
        f"The attacks got {100 * best.epsilon / claimed:.0f} % of the way to the claim."
        if best.epsilon > 0 and math.isfinite(claimed)
        else "The attacks guessed no better than luck allows."
    )


def bound_rows(audit: Audit) -> list[tuple[str, ...]]:
    """Return a row for each view: what was seen, and epsilon by each method, marked where it is above the claim."""
    views = dict.fromkeys(bound.view for bound in audit.bounds)
    return [
        (view, *(f"{bound.epsilon:.2f}{' FAULT' * bound.refutes}" for bound in audit.bounds if bound.view == view))
        for view in views
    ]


def meter_rows(audit: Audit) -> list[tuple[str, ...]]:
    """Return a row for each meter: its name, what it read, what is due, and whether it alarms."""
    return [
        (reading.meter, f"{reading.value:.4f}", f"{reading.expected:.4f}", "ALARM" if reading.alarm else "")
        for reading in audit.readings
    ]


def audit_data(audit: Audit) -> dict[str, Any]:
    """Return an audit as data for JSON."""
    spending, size = audit.claim.spending, audit.size
    return {
        "claimed_epsilon": audit.epsilon,
        "delta": audit.claim.delta,
        "audited_epsilon": audit.best.epsilon,
        "audited_epsilon_assuming_nothing": audit.assuming_nothing,
        "confidence": audit.confidence,
        "meters_confidence": max(audit.confidence, METERS),
        "faulty": audit.faulty,
        "noise_multiplier": spending.noise_multiplier,
        "sample_rate": spending.sample_rate,
        "steps": spending.steps,
        "gradient_canaries": size.gradient_canaries,
        "image_canaries": size.image_canaries,
        "images_a_canary": size.images_a_unit,
        "rounds": size.rounds,
        "bounds": [asdict(bound) | {"assumes": ASSUMPTIONS[bound.method]} for bound in audit.bounds],
        "meters": [asdict(reading) for reading in audit.readings],
    }


def membership_row(found: Membership) -> tuple[str, ...]:
    """Return a row: how it was trained, models, AUC, true-positive rates, the largest lower bound on epsilon."""
    hits = (f"{100 * found.hits[rate]:.1f} %" for rate in SMALL_RATES)
    bound = max(bound.epsilon for bound in found.bounds)
    return (_privacy_of(found.claim.epsilon), str(found.models), f"{found.auc:.3f}", *hits, f"{bound:.2f}")


def membership_lines(results: Sequence[Membership]) -> list[str]:
    """Return what membership inference came to, in words."""
    lines = [
        f"{results[0].units} units, each in the training of half of the models. AUC 0.5 is guessing; what matters is "
        "how many members are recognised (TPR) while hardly anybody else is called one (FPR). The bounds are from one "
        "model's units."
    ]
    for found in results:
        if found.refuted:
            lines.append(f"FAULT: members are recognised more surely than epsilon {found.claim.epsilon:.2f} allows.")
    lines.append(LIMITS)
    return lines


def membership_data(found: Membership) -> dict[str, Any]:
    """Return an attack on membership as data for JSON; an infinite claim is null."""
    claimed = found.claim.epsilon
    return {
        "claimed_epsilon": claimed if math.isfinite(claimed) else None,
        "models": found.models,
        "units": found.units,
        "auc": found.auc,
        "tpr_at_fpr": {f"{rate:g}": hit for rate, hit in found.hits.items()},
        "faulty": found.refuted,
        "bounds": [asdict(bound) | {"assumes": ASSUMPTIONS[bound.method]} for bound in found.bounds],
    }


def inversion_rows(found: Inversion) -> list[tuple[str, ...]]:
    """Return a row for each picture: what it was rebuilt from, and how like the image it is."""
    pictures = {"the update without privacy": found.open, "nothing: a flat grey": found.flat}
    if found.private is not None:
        pictures = {"the update with the job's privacy": found.private, **pictures}
    likenesses = {name: found.likeness(picture) for name, picture in pictures.items()}
    return [(name, f"{like.psnr:.1f}", f"{like.ssim:.3f}") for name, like in likenesses.items()]


def inversion_lines(found: Inversion) -> list[str]:
    """Return what gradient inversion came to, in words."""
    lines = [
        "One step was trained on one image by a small network that is easy to invert. Above some 25 dB a picture can't "
        "be told from the image at a glance; below the flat grey it shows nothing."
    ]
    if found.private is None:
        return [*lines, "The job has no privacy: nothing protects an update of one image."]
    better = found.likeness(found.private).ssim < 0.5 * found.likeness(found.open).ssim
    return [*lines, "With the job's privacy the image can't be rebuilt." if better else "The noise hides little here."]


def inversion_data(found: Inversion) -> dict[str, Any]:
    """Return gradient inversion's likenesses as data for JSON."""
    pictures = {"open": found.open, "private": found.private, "flat": found.flat}
    return {name: asdict(found.likeness(each)) for name, each in pictures.items() if each is not None}


def planted_row(found: Planted) -> tuple[str, ...]:
    """Return a row: fault, claimed epsilon, lower bounds, whether one is above the claim, and which meters alarm."""
    audit, name = found.audit, found.fault.name if found.fault else "none: honest training"
    alarms = ", ".join(dict.fromkeys(reading.kind for reading in audit.readings if reading.alarm))
    epsilons = (f"{epsilon:.2f}" for epsilon in (audit.epsilon, audit.best.epsilon, audit.assuming_nothing))
    return (name, *epsilons, "yes" if audit.refuted else "no", alarms or "none")


def planted_data(found: Planted) -> dict[str, Any]:
    """Return the audit of a fault as data for JSON."""
    fault = found.fault
    return {
        "fault": fault.name if fault else None,
        "meaning": fault.meaning if fault else "",
        "caught": found.audit.faulty,
        **audit_data(found.audit),
    }


def _privacy_of(epsilon: float) -> str:
    return f"epsilon {epsilon:.2f}" if math.isfinite(epsilon) else "no privacy"


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
