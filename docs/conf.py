"""Sphinx settings of the documentation; scripts/docs.py lays out the folder that they are read in."""

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

project = "carp_nb"
author = "The carp_nb authors"
copyright = f"2026, {author}"
extensions = ["myst_nb"]
exclude_patterns = ["conf.py"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # pages show what a run gave, they make no run
nb_ipywidgets_js = {}  # no widget scripts from elsewhere
suppress_warnings = ["toc.not_included"]  # files that pages link to, such as the model card
nb_merge_streams = True
html_theme = "furo"
html_title = "carp_nb"
html_copy_source = html_show_sphinx = False
html_math_renderer = "mathml"  # drawn by the browser itself, no script


def _mathml(block: bool):
    def visit(writer, node):
        writer.body.append(tex2mathml(node.astext(), as_block=block))
        raise SkipNode

    return visit


def setup(app):
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_mathml(False), None), block_renderers=(_mathml(True), None)
    )
    return {"parallel_read_safe": True}
