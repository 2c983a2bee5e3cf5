"""`--ablation FILE.py:NAME`: an ablation of the user's own, which its text names from then on."""

from __future__ import annotations

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.parse import READERS
from robustpatch.cli.import_by_name import named_object
from robustpatch.errors import InvalidInput


def own_ablation(text: str | None) -> str | None:
    """The text of the ablation at FILE.py:NAME, an object or a function that returns one; any other text as it is.

    `parse_ablation` reads that text afterwards, in this process: a checkpoint holds the text alone, and no name of a
    file to be run.
    """
    if text is None or ".py:" not in text:
        return text
    found = named_object(text, "ablation")
    ablation = found() if callable(found) and not isinstance(found, Ablation) else found
    if not isinstance(ablation, Ablation):
        raise InvalidInput(
            f"ablation is {text!r}, a {type(ablation).__name__}; name an object of a class derived from "
            "robustpatch.Ablation, or a function that returns one"
        )
    name = str(ablation)
    if "+" in name or name != name.strip().lower():
        raise InvalidInput(f"ablation {text!r} is called {name!r}; let its __str__ be in lower case, without a +")
    READERS.append(lambda asked: ablation if asked == name else None)
    return name
