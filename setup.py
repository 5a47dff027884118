"""Install carp_nb from settings.ini, the single source of truth for version, requirements and extras."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read_string((Path(__file__).parent / "settings.ini").read_text(encoding="utf-8"))
cfg = settings["DEFAULT"]
# one extra per `<name>_requirements` key; whoever develops runs the notebooks and the workflow too
extras = {
    key.removesuffix("_requirements"): cfg[key].split()
    for key in cfg
    if key.endswith("_requirements")
}
extras["dev"] += extras["notebooks"] + extras["workflow"]
setup(
    version=cfg["version"],
    description=cfg["description"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
