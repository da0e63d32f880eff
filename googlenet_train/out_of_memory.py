"""How PyTorch says that memory is short."""

import torch

# The CPU's allocator, MPS and some of CUDA's libraries raise a plain RuntimeError.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that a tensor found no room, in the device's memory or the host's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
