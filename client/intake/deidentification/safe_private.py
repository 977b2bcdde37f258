"""Private attributes that are known to hold nothing of a person (PS3.15 Table E.3.10-1), as far as training needs them.

Of the table these are taken: what makes intensities comparable (scale slopes, uptake factors), the weights and
directions of diffusion, and how a table or tube moved. Only numbers stay; all other private attributes are removed.
"""

from __future__ import annotations

SAFE_PRIVATE = {
    "Philips PET Private Group": {(0x7053, 0x00), (0x7053, 0x09)},
    "Philips MR Imaging DD 001": {(0x2005, 0x0D), (0x2005, 0x0E)},
    "Philips Imaging DD 001": {(0x2001, 0x03)},
    "SIEMENS MR HEADER": {(0x0019, 0x0C), (0x0019, 0x0E), (0x0019, 0x27)},
    "ELSCINT1": {(0x00E1, 0x21), (0x01E1, 0x50), (0x01F1, 0x07), (0x01F1, 0x26), (0x01F1, 0x27)},
    "GEMS_ACQU_01": {(0x0019, 0x23), (0x0019, 0x24), (0x0019, 0x27)},
    "GEMS_SERS_01": {(0x0025, 0x07)},
    "GEMS_PARM_01": {(0x0043, 0x39), (0x0043, 0x6F)},
    "GEMS_HELIOS_01": {(0x0045, 0x01), (0x0045, 0x02)},
}
"""By private creator: group, and element within the creator's block."""
NUMBERS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
"""Value representations of numbers."""
