"""Lists the packages; everything else is in pyproject.toml.

A static `packages.find` cannot see that `loops/` and `envs/` are `seqbdl.loops` and `seqbdl.envs`, and a list written
by hand forgets new sub-packages, so the list is computed here.
"""

from setuptools import find_packages, setup

ROOMS = {"seqbdl.loops": "loops", "seqbdl.envs": "envs"}

packages = find_packages(include=["seqbdl", "seqbdl.*"])
for name, folder in ROOMS.items():
    packages += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]

setup(packages=packages)
