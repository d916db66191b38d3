"""How operations are registered, a GPU's too, as far as it shows without a GPU."""

import torch

import fastinfogan.engine  # noqa: F401 - registers all of them
from fastinfogan_kernels.runtime.registry import first_tensor


def test_each_operation_tells_its_device_by_its_first_argument() -> None:
    """On a GPU it runs on that device, which is a tensor's, or that of a list of some."""
    every = torch._C._dispatch_get_all_op_names()
    names = [name.partition("::")[2] for name in every if name.startswith("fastinfogan::")]
    assert "adam" in names
    t, other = torch.zeros(1), torch.zeros(2)
    for name in names:
        schema = getattr(torch.ops.fastinfogan, name).default._schema
        kind = str(schema.arguments[0].type)
        assert kind in ("Tensor", "List[Tensor]"), name
        first = t if kind == "Tensor" else [t, other]
        assert first_tensor((first, None, 3)) is t, name
