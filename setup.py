"""Install carp_nb from settings.ini, the single source of truth for version, requirements and extras."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read_string((ROOT / "settings.ini").read_text(encoding="utf-8"))
cfg = settings["DEFAULT"]
# one extra per `<name>_requirements` key; whoever develops runs the notebooks and the workflow too
extras = {
    key.removesuffix("_requirements"): cfg[key].split()
    for key in cfg
    if key.endswith("_requirements")
}
extras["dev"] += extras["notebooks"] + extras["workflow"]
# on the page of a package index there are no files beside the README
readme = re.sub(
    r"\]\((?!https?:|#)",
    f"]({cfg['git_url']}/blob/{cfg['branch']}/",
    (ROOT / "README.md").read_text(encoding="utf-8"),
)
# an image is the file itself, not the page that shows it
readme = re.sub(rf"(!\[[^\]]*\]\({cfg['git_url']})/blob/", r"\1/raw/", readme)
setup(
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"].split(),
    classifiers=[line for line in cfg["classifiers"].splitlines() if line],
    project_urls={
        "Homepage": cfg["git_url"],
        "Issues": f"{cfg['git_url']}/issues",
        "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
        "Paper": "https://doi.org/10.1016/j.cels.2024.01.008",
    },
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
