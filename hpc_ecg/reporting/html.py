"""Render a jinja2 template of `templates/` as one HTML file.

Style and figures (SVG) are inside the file, so it can be mailed and read without a network. Values
are escaped; only `inline_svg` passes markup through.
"""

import re
from collections.abc import Iterable, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hpc_ecg.reporting.escape import code, markdown, xml_text
from hpc_ecg.reporting.plots import INK


def render_page(template: str, **values: object) -> str:
    """The text of the page; a value that the template names and `values` lacks is an error."""
    page = _environment(autoescape=True).get_template(template).render(**values)
    return xml_text(_with_contents(page))


def _with_contents(page: str) -> str:
    """Replace `<!-- contents -->` by links to all h2 headings that have an id."""
    headings = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', page)
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in headings)
    nav = f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
    return page.replace("<!-- contents -->", nav, 1)


def render_text(template: str, **values: object) -> str:
    """`render_page` for Markdown, in which values are escaped, too."""
    return _environment(autoescape=False).get_template(template).render(**values)


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("hpc_ecg.reporting", "templates"),
        autoescape=autoescape,  # noqa: S701  # off for Markdown, which `markdown` escapes
        finalize=None if autoescape else markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "code": code}
    return environment


def _breakable(name: str) -> Markup:
    """Allow line breaks in a long name after _ + , and /, but not within a word."""
    return Markup(re.sub(r"([_+,/])", r"\1<wbr>", str(escape(name))))  # noqa: S704  # escaped


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table for the inside of a page; all texts are escaped."""
    lines = [
        Markup("").join(Markup("<{0}>{1}</{0}>").format(tag, xml_text(str(cell))) for cell in row)
        for tag, row in (("th", columns), *(("td", row) for row in rows))
    ]
    body = Markup("").join(Markup("<tr>{}</tr>\n").format(line) for line in lines)
    return Markup("<table>\n<caption>{}</caption>\n{}</table>\n").format(xml_text(caption), body)


def inline_svg(svg: str, description: str) -> Markup:
    """A figure for the inside of a page: in the page's text colour (dark mode, print), with a
    description for screen readers, and without the URLs of XML namespaces."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", body).replace(INK, "currentColor")
    label = f'<svg role="img" aria-label="{escape(description)}"'
    return Markup(body.replace("<svg", label, 1))  # noqa: S704  # names in figures are escaped
