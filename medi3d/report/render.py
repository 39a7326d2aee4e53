"""From templates to pages: one file that fetches nothing, with everything escaped that a template does not hold."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medi3d._version import __version__


def render(template: str, **values: Any) -> str:
    """Fill a template of ``medi3d/report/templates``; values are escaped unless they are marked as HTML.

    Args:
        template: file name.
        values: what it speaks of; a name that is missing raises.
    """
    return _environment().get_template(template).render(version=__version__, **values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("medi3d.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
