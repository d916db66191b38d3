"""Print constraints: oldest versions that pyproject.toml allows, and constraints.txt for the rest.

Packages named as arguments stay as constraints.txt has them.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
project = pyproject["project"]
required = [
    *pyproject["build-system"]["requires"],
    *project["dependencies"],
    *(
        each
        for extra in ("train", "eval", "hdf5", "test")
        for each in project["optional-dependencies"][extra]
    ),
]
oldest = dict(
    found.groups() for each in required if (found := re.match(r"([\w-]+)>=([\w.]+)", each))
)
pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / ".ci/constraints.txt").read_text(), re.M))
normalised = {re.sub(r"[-_.]+", "-", name).lower(): name for name in pinned}
for name, version in oldest.items():
    if name not in sys.argv[1:]:
        pinned[normalised.get(name, name)] = version
print("\n".join(f"{name}=={version}" for name, version in sorted(pinned.items())))
