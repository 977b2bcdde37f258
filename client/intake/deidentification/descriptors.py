"""Descriptions, of which only known words stay (PS3.15 E.3.6, Clean Descriptors Option)."""

from __future__ import annotations

import re

from client.intake.acquisition import WORDS as _OF_PROTOCOLS
from client.intake.deidentification.known import Known

_OF_STRUCTURES = frozenset([
    "ptv", "ctv", "gtv", "itv", "roi", "oar", "body", "external", "patient", "couch", "isocenter", "isocentre", "cord",
    "spinal", "canal", "brainstem", "stem", "chiasm", "nerve", "nerves", "lens", "cochlea", "parotid", "gland",
    "submandibular", "mandible", "larynx", "pharynx", "oral", "cavity", "esophagus", "oesophagus", "trachea",
    "bronchus", "carina", "lungs", "aorta", "artery", "vein", "vena", "cava", "vessel", "vessels", "atrium",
    "ventricle", "stomach", "bowel", "colon", "duodenum", "rectum", "bladder", "femur", "femoral", "sacrum", "rib",
    "ribs", "vertebra", "spleen", "pancreas", "gallbladder", "kidneys", "adrenal", "ureter", "urethra", "penile",
    "bulb", "seminal", "vesicles", "uterus", "cervix", "ovary", "tumor", "tumour", "lesion", "nodule", "mass", "node",
    "nodes", "lymph", "edema", "oedema", "necrosis", "enhancing", "core", "whole", "anterior", "posterior",
    "superior", "inferior", "medial", "upper", "lower", "middle", "lobe", "cyst", "background", "l", "r", "lt", "rt",
    "boost", "plan", "margin", "ring", "avoid", "skin", "tongue", "thyroid", "pituitary", "cerebellum", "frontal",
    "temporal", "parietal", "occipital", "white", "grey", "gray", "matter", "csf",
])  # fmt: skip
WORDS = _OF_PROTOCOLS | _OF_STRUCTURES
"""Words that name a technique, a part of the body or a structure, and nobody."""
_PART = re.compile(r"([a-z]*)(\d{0,2})")


def cleaned(text: str, known: Known) -> str:
    """Return the words of `text` that are known ones and name nobody in this file, with up to two digits after each."""
    return " ".join(part for part in _parts(text) if _may_stay(part.casefold(), known))


def is_clean(text: str, known: Known) -> bool:
    """Whether all words of `text` may stay."""
    return all(_may_stay(part.casefold(), known) for part in _parts(text))


def _parts(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _may_stay(part: str, known: Known) -> bool:
    return _is_known(part) and part not in known.words


def _is_known(part: str) -> bool:
    found = _PART.fullmatch(part)
    return part in WORDS or (found is not None and found.group(1) in WORDS)
