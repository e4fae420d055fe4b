"""Takes texts, arrays, tensors and lists of numbers from a caller, who may change them later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_track.record.device_values import CudaCopy
from mlflow_track.record.files import legible
from mlflow_track.wording import shown, type_error

if TYPE_CHECKING:
    import numpy


class Encodable(NamedTuple):
    """The content of a file that is still to be made.

    Attributes:
        size_bytes: The memory that it holds until then.
        encode: Makes the content; raises ValueError or RuntimeError where that fails.
    """

    size_bytes: int
    encode: Callable[[], bytes]


def text_of(text: Any, name: str) -> Encodable:
    """A text as UTF-8; half characters become legible.

    Args:
        text: The text.
        name: The file's name, for a message.

    Raises:
        TypeError: It is not a string.
    """
    if not isinstance(text, str):
        raise type_error(f"the text for {shown(name)}", "a string", type(text).__name__)
    return Encodable(len(text), lambda: legible(text).encode())


class Taken(NamedTuple):
    """A copy of numbers.

    Attributes:
        shape: Their shape.
        kind: "b" for booleans, "i" for integers, "f" for floats.
        size_bytes: The size of the copy.
        is_here: Whether `array` returns at once; else a device is still on the way to them.
        array: Returns them; raises RuntimeError where the device has failed.
    """

    shape: tuple[int, ...]
    kind: str
    size_bytes: int
    is_here: bool
    array: Callable[[], numpy.ndarray[Any, Any]]


def take(values: Any, name: str, what: str) -> Taken:
    """Copy numbers; those on a CUDA device are not waited for.

    Args:
        values: An array, a tensor, or nested lists of numbers.
        name: Their name in a message.
        what: The expectation, to follow "must be".

    Raises:
        TypeError: They are something else.
    """
    import numpy

    is_tensor = hasattr(values, "detach")
    if is_tensor:
        values = values.detach()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16.
        if values.is_cuda and not (values.is_complex() or values.is_sparse):
            copy, dtype = CudaCopy(values), str(values.dtype)
            kind = "b" if dtype == "torch.bool" else "f" if values.is_floating_point() else "i"
            size_bytes = values.numel() * values.element_size()
            shape = tuple(values.shape)
            return Taken(
                shape, kind, size_bytes, False, lambda: copy.wait_for_tensor().resolve_neg().numpy()
            )
    try:
        # NumPy knows no negative sign that waits to be applied, as of a conjugate's imaginary part.
        array = (values.cpu().resolve_neg().numpy() if is_tensor else numpy.asarray(values)).copy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise type_error(name, what, f"{type(values).__name__}: {error}") from None
    if array.dtype.kind not in "buif":
        raise type_error(name, what, f"{type(values).__name__} of {array.dtype}")
    kind = array.dtype.kind.replace("u", "i")
    return Taken(array.shape, kind, array.nbytes, True, lambda: array)
