"""The docket: every certifier that is tried, in order."""

from __future__ import annotations

from evaluate.court import (
    art_votes,
    certmask,
    clipped_bagnet,
    costcert,
    crosscert,
    hicert,
    levine_feizi,
    masked_ds,
    masked_ds_threshold,
    minority_reports,
    multi_block,
    patchcleanser,
    patchguard,
    patchguard_plus,
    patchguard_sums,
    randomized_columns,
    smoothed_vit,
    token_masks,
)
from evaluate.court.entry import Entry

DOCKET: tuple[Entry, ...] = (
    minority_reports.ENTRY,
    patchguard.ENTRY,
    patchguard_sums.ENTRY,
    patchguard_plus.ENTRY,
    masked_ds.ENTRY,
    masked_ds_threshold.ENTRY,
    clipped_bagnet.ENTRY,
    smoothed_vit.ENTRY,
    art_votes.ENTRY,
    multi_block.ENTRY,
    randomized_columns.ENTRY,
    certmask.ENTRY,
    token_masks.ENTRY,
    crosscert.ENTRY,
    hicert.ENTRY,
    costcert.ENTRY,
    levine_feizi.ENTRY,
    patchcleanser.ENTRY,
)
