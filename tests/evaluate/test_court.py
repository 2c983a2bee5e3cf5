"""The court: what is published and unsound falls, what is repaired or sound does not, and the page says so."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from markupsafe import escape

from evaluate.audit import replay
from evaluate.audit.dictated_base import Answers, vote
from evaluate.audit.harness import Harness
from evaluate.audit.reproducer import save
from evaluate.court import DOCKET, clipped_bagnet, local_features, minority_reports, patchguard_plus
from evaluate.court.board import RULES, counted, network_says
from evaluate.court.drawing import drawn
from evaluate.court.entry import Witness, claim, sizes
from evaluate.court.session import hear
from evaluate.court.trial import try_form, written
from robustpatch.data.images import load_images
from robustpatch.storage.store import Store
from tests.evaluate.audits import call

ENTRIES = {entry.module: entry for entry in DOCKET}
FAULTY = [entry for entry in DOCKET if entry.fault]
QUICK = {"smoothed_vit", "crosscert", "masked_ds_threshold"}  # the others are slow tests
SMALLEST = {  # where the entry's fault is seen first
    "minority_reports": 0,
    "patchguard": 4,
    "patchguard_sums": 2,
    "patchguard_plus": 0,
    "masked_ds": 0,
    "masked_ds_threshold": 6,
    "clipped_bagnet": 5,
    "smoothed_vit": 4,
    "art_votes": 1,
    "multi_block": 4,
    "randomized_columns": 2,
    "certmask": 0,
    "crosscert": 0,
}


def quick(entries):
    """Pytest's parameters, all but the quick ones marked slow."""
    return [
        pytest.param(entry, id=entry.module, marks=() if entry.module in QUICK else pytest.mark.slow)
        for entry in entries
    ]


def smallest(entry):
    """The entry with the one size on which its fault is seen."""
    return replace(entry, sizes=(entry.sizes[SMALLEST[entry.module]],))


def test_the_docket():
    assert len(DOCKET) >= 14
    assert set(SMALLEST) == {entry.module for entry in FAULTY}
    for entry in DOCKET:
        assert (entry.repaired is None) == (not entry.fault)
        assert entry.claim
        assert entry.read


@pytest.mark.parametrize("entry", quick(FAULTY))
def test_the_published_rule_falls_and_the_repaired_one_does_not(entry, tmp_path):
    trial = try_form(smallest(entry), "printed", 60)
    assert trial.verdict == "broken"
    finding = trial.smallest
    assert finding is not None
    path = save(finding, Store(str(tmp_path)), 0).path
    assert path is not None
    assert replay(path, factory=entry.printed)
    assert not replay(path, factory=entry.repaired)
    drawing = drawn(entry.printed, finding)
    assert drawing.claimed == finding.note["prediction"] != drawing.predicted >= 0
    assert any(view.before != view.after for view in drawing.views)


@pytest.mark.slow
@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.module) for entry in DOCKET])
def test_no_search_breaks_what_is_repaired_or_sound(entry):
    trial = try_form(entry, entry.forms[-1][0], 10, budget=500)
    assert trial.verdict == "held", trial.smallest or trial.found


def overturned(factory, size, alerts, palette):
    """A certificate that falls, of all clean and all patched answers of the palette at all places; and how many were
    certified.
    """
    (shape, threat, classes), certified = size, 0
    harness = Harness(factory, classes, shape, alerts=alerts)
    keys = [*harness.shown, *harness.extra(threat)]
    sites = [harness.site(threat, place[None]) for place in threat.placements(*shape[1:])]
    new = [[key for key in harness.views(site.x_adv) if key not in harness.shown] for site in sites]
    for rows in product(palette, repeat=len(keys)):
        clean = dict(zip(keys, rows, strict=True))
        harness.dictate(Answers(clean, palette[0]))
        claim = harness.subject.certify(harness.x, threat)
        if not bool(claim.certified[0]):
            continue
        certified += 1
        for site, some in zip(sites, new, strict=True):
            for patched in product(palette, repeat=len(some)):
                harness.dictate(Answers(clean | dict(zip(some, patched, strict=True)), palette[0]))
                predicted = harness.subject.predict(site.x_adv)
                if bool(harness.subject.changed(predicted, int(claim.prediction[0]))[0]):
                    return (rows, patched, site.corners), certified
    return None, certified


def of(module, size, classes, *more):
    """An entry, a size, and answers besides plain votes."""
    where = sizes(size, classes=(classes,))[0]
    return pytest.param(ENTRIES[module], where, more, id=module, marks=() if module in TINY else pytest.mark.slow)


TINY = {"levine_feizi", "smoothed_vit"}
HALF = (0.0, -1.0986122886681098)  # a softmax of 0.75 and 0.25


@pytest.mark.parametrize(
    ("entry", "size", "more"),
    [
        of("levine_feizi", "1x1x5/1x1", 3),
        of("crosscert", "1x1x4/1x1", 2),
        of("smoothed_vit", "1x1x13/1x1", 2),
        of("art_votes", "1x1x5/1x1", 3),
        of("randomized_columns", "1x2x5/1x1", 2),
        of("masked_ds", "1x1x5/1x1", 2, (16.0, 8.0)),
        of("masked_ds_threshold", "1x1x5/1x1", 2, (16.0, 8.0)),
        of("certmask", "1x1x4/1x1", 2),
        of("hicert", "1x1x4/1x1", 2, HALF, HALF[::-1]),
        of("token_masks", "1x4x6/1x1", 3),
        of("patchcleanser", "1x1x4/1x2", 2),
        of("clipped_bagnet", "1x2x6/1x1", 2),
        of("patchguard", "1x2x6/1x1", 2, (16.0, 8.0)),
        of("patchguard_plus", "1x2x5/1x1", 2, (16.0, 8.0)),
        of("patchguard_sums", "1x2x5/1x1", 2, (16.0, 8.0)),
        of("costcert", "1x1x6/1x1", 3),
    ],
)
def test_the_sound_form_by_all_answers_there_are(entry, size, more):
    """Every certificate on a tiny image is held against every answer of every patched view."""
    palette = [*(vote(size[2], (k,)) for k in range(size[2])), *(row for row in more if len(row) == size[2])]
    found, certified = overturned(entry.forms[-1][1], size, entry.alerts, palette)
    assert found is None
    assert certified > 0


def test_all_answers_find_an_unsound_form():
    entry = smallest(ENTRIES["smoothed_vit"])
    palette = [vote(2, (0,)), vote(2, (1,))]
    found, _ = overturned(entry.printed, entry.sizes[0], entry.alerts, palette)
    assert found is not None


def test_the_page_names_each_and_its_files_show_it_again(tmp_path):
    entries = [smallest(ENTRIES[name]) for name in ("smoothed_vit", "crosscert")]
    entries = [replace(entry, repaired=None) for entry in entries]  # only the quick half of a session
    cases = hear(entries, Store(str(tmp_path)), 60)
    text, page = (tmp_path / "court.md").read_text(), (tmp_path / "court.html").read_text()
    for case in cases:
        assert case.entry.title in text
        assert escape(case.entry.title) in page
        assert "<svg" in page
        assert case.commands[0] in text
        again = call("--factory", case.entry.named("printed"), "--replay", case.files[0])
        assert again.exit_code == 1, again.output
        assert "the finding is confirmed" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "hicert"), "without --court"),
        (("--court", "--only", "nobody"), "the docket has"),
        (("--court", "nowhere:x"), "of its own"),
    ],
)
def test_wrong_calls(arguments, message):
    refused = call(*arguments)
    assert refused.exit_code == 2, refused.output
    assert message in " ".join(refused.output.split())


class Drowned(patchguard_plus.PatchGuardPlus):
    """PatchGuard++ with the alert mended and the sums not."""

    alarming = patchguard_plus.SummedRest.alarming


class Silent(patchguard_plus.SummedRest):
    """PatchGuard++ with the sums mended and the alert not."""

    sure = 0.5  # what two equal scores have
    alarming = patchguard_plus.PatchGuardPlus.alarming


class SilentMasks(minority_reports.HangingMasks):
    """Minority Reports with the masks mended and the alert not."""

    sure = 0.5  # what two equal scores have
    alarming = minority_reports.MinorityReports.alarming


class Tied(clipped_bagnet.ClippedBagNet):
    """Clipped BagNet against every class, at a tie by none."""

    def certify(self, x, threat):
        local = self.clipped(x)
        first = local.flatten(2).sum(dim=2).argmax(dim=1)
        ahead = local[torch.arange(len(x)), first][:, None] - local
        inside = local_features.windows((threat.height, threat.width), local)
        rest = torch.where(inside, 0.0, ahead[:, :, None]).flatten(3).sum(dim=3)
        other = torch.arange(self.num_classes) != first[:, None]
        enough = (rest >= 2 * inside.flatten(1).sum(dim=1)).all(dim=2) | ~other
        return claim(first, enough.all(dim=1))


LOST = ((-1e10, 1e10),) * 2


@pytest.mark.parametrize(
    ("module", "kind", "size", "corner", "clean", "patched"),
    [
        ("patchguard_plus", Drowned, "1x2x4/1x1", (0, 1), ((30.0, -30.0),) * 3, LOST),
        ("patchguard_plus", Silent, "1x2x4/1x1", (0, 1), ((1e-8, 0.0),) * 3, ((-999.0, 999.0),) * 2),
        ("minority_reports", SilentMasks, "1x3x3/1x1", (1, 1), ((0.0, 0.0),) * 26, ((-30.0, 30.0),) * 17),
        ("clipped_bagnet", Tied, "1x2x5/1x1", (0, 1), ((-999.0, 999.0),) * 4, ((999.0, -999.0),) * 2),
    ],
)
def test_each_fault_by_itself_is_one(module, kind, size, corner, clean, patched):
    """Where an entry names two faults, mending one leaves the other."""
    witness = Witness(sizes(size, classes=(2,))[0], corner, clean, patched)
    entry = replace(ENTRIES[module], witness=witness)
    assert written(lambda base, k, shape: kind(base, k), entry, 0) is not None

    def mended(base, k, shape):
        made = entry.repaired(base, k, shape)
        if hasattr(kind, "sure"):
            made.sure = kind.sure
        return made

    assert written(mended, entry, 0) is None


@pytest.mark.slow
def test_the_board_certifies_no_more_by_a_repaired_rule():
    logits, labels = network_says(load_images("mnist-sample"))
    rows = {(name, form): row for name, form, *row in (counted(*rule, logits, labels) for rule in RULES)}
    for name, form in rows:
        if form == "repaired":
            first = next(row for (own, _), row in rows.items() if own == name)
            assert rows[name, form][0] == first[0]
            assert rows[name, form][1] <= first[1]
