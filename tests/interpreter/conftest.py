"""Kernels run by Triton's interpreter, on CPU tensors: in a pytest process of their own.

    TRITON_INTERPRET=1 python -m pytest tests/interpreter

A process under the interpreter cannot compile, and one without it cannot interpret; without the
variable nothing of this folder is collected.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
