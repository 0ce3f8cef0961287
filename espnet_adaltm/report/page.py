"""``report.html``: everything that was found, on one page that needs nothing else.

Made from ``results.json`` alone, also an older one; what it lacks is left out. Script and style are
inside, and the page forbids its browser to load anything.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_adaltm.report import learning, sections
from espnet_adaltm.report.audit import parse_audit
from espnet_adaltm.report.svg import key
from espnet_adaltm.report.theme import stylesheet
from espnet_adaltm.report.utterances import Example

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Extras:
    """What is not in ``results.json``.

    Attributes:
        recipe: Heading.
        note: Text under it.
        commands: What was typed.
        environment: Markdown list, see `environment.espnet_block`.
        base: Facts about the base encoder.
        audit: Text of ``audit.md``, or None.
        examples: Test set to the system whose mistakes these are, and the utterances.
    """

    recipe: str
    note: str = ""
    commands: Sequence[str] = ()
    environment: str = ""
    base: Mapping[str, str] = field(default_factory=dict)
    audit: str | None = None
    examples: Mapping[str, tuple[str, Sequence[Example]]] = field(default_factory=dict)


def render_page(result: Mapping[str, Any], extras: Extras) -> str:
    """The whole page.

    Args:
        result: ``results.json`` of `aggregate.aggregate`.
        extras: The rest.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    looks = sections.looks(result)
    sets = [sections.set_context(result, name, looks) for name in sections.set_names(result)]
    for entry in sets:
        system, found = extras.examples.get(entry["name"], ("", ()))
        entry["examples"] = {"system": system, "rows": found} if found else None
    return environment.get_template("page.html").render(
        extras=extras,
        environment=_facts(extras.environment),
        script=script,
        script_hash=digest,
        style=stylesheet() + (_TEMPLATES / "style.css").read_text(encoding="utf-8"),
        keys={name: key(shape) for name, shape in looks.items()},
        sets=sets,
        coefficients=learning.coefficients(result),
        trainings=learning.trainings(result, looks),
        audit=parse_audit(extras.audit) if extras.audit else None,
        bootstrap=result["bootstrap"],
        systems=sections.system_facts(result),
        reference=result.get("reference"),
    )


def _facts(block: str) -> list[tuple[str, str]]:
    """Names and values of a Markdown list."""
    pairs = [line.strip().removeprefix("- ").partition(": ") for line in block.splitlines()]
    return [(name, value.strip("`")) for name, _, value in pairs]
