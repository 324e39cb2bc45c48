"""Install conf/ and experiments/, which are at the top of the repository, as parts of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lorabench*"]), "lorabench.conf", "lorabench.experiments"],
    package_dir={"lorabench.conf": "conf", "lorabench.experiments": "experiments"},
)
