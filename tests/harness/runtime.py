"""Which runtime is under test: $OCI_RUNTIME, or the checkout's own launcher."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

#: Names under which the runtime of this project is installed.
OUR_NAMES = ("kata", "kata-runtime", "cc-runtime", "runv", "kata-clear", "kata-runv", "kata-unified")


@dataclass(frozen=True)
class Runtime:
    """A runtime binary and what the suites need to know about it."""

    path: str
    is_vm: bool  #: gives every container a machine of its own
    environ: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return Path(self.path).name


@cache
def under_test() -> Runtime:
    """The runtime under test.

    :raise FileNotFoundError: neither $OCI_RUNTIME nor the launcher exists.
    """
    wanted = os.environ.get("OCI_RUNTIME", "")
    path = wanted or str(Path(sys.executable).parent / "kata")
    found = shutil.which(path)
    if found is None:
        raise FileNotFoundError(
            f"no runtime to test at {path}; set OCI_RUNTIME or install the project (pip install -e .)"
        )
    return Runtime(path=found, is_vm=Path(found).name in OUR_NAMES)
