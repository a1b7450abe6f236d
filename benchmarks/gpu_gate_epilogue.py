"""An epilogue for `gpu_gate.py`, in a module of its own: quack-kernels imports it again where it compiles."""

from __future__ import annotations

from typing import Any

from quack.activation import swiglu
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.math import unpack
from quack.epilogue.ops import ColVecLoad, RowVecLoad


@gemm_epilogue(
    outputs=("postact",), ops={"rows": ColVecLoad("rows"), "columns": RowVecLoad("columns")}, mode="acc_pair"
)
def scaled_swiglu(acc: Any, rows: Any, columns: Any) -> dict[str, Any]:
    """The gate of products times the scales of their rows and columns."""
    gate, up = unpack(acc * rows * columns)
    return {"postact": swiglu(gate, up)}
