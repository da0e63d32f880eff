"""How PyTorch and Python say that memory is short. Known by its words: torch is not needed."""

# The CPU's allocator, MPS and some of CUDA's libraries raise a plain RuntimeError. cuDNN's search
# for the fastest convolution hides it in its last words (pytorch/pytorch issue 108645).
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "unable to find an engine",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that a tensor found no room, in the device's memory or the host's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
