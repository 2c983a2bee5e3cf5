"""The audit with defaults on every certifier: the unsound are found and shown again, the sound raise no alarm."""

from __future__ import annotations

import pytest

from tests.evaluate.acceptance.cases import SOUND, UNSOUND
from tests.evaluate.acceptance.examine import HEAD, examined

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_MOST = 300  # seconds of one core


@pytest.fixture(scope="module")
def rows(request):
    """What each case came to, printed as a table at the end."""
    found: list[str] = []
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join([HEAD, *found]))


@pytest.mark.parametrize("case", UNSOUND, ids=str)
def test_unsound_certifiers_are_found(case, rows):
    result = examined(case)
    rows.append(str(result))
    assert result.right, result.done.findings
    assert result.seconds < _MOST


@pytest.mark.parametrize("case", SOUND, ids=str)
def test_sound_certifiers_raise_no_alarm(case, rows):
    result = examined(case)
    rows.append(str(result))
    assert result.right, (result.done.verdict, result.done.findings)
    assert result.seconds < _MOST
