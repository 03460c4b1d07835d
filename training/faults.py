"""What a machine does to a run, in words."""

from training.ranks import Ranks, is_lost_connection
from upscaling.devices import is_out_of_memory

# What talking to a worker that has just died raises, where torch does not yet know that it has.
LOST_WORKER = (ConnectionError, EOFError)
LOST_WORKER_SIGNS = ("DataLoader worker (pid", "Pin memory thread exited")
SHARED_MEMORY_SIGNS = (
    "allocate shared memory",
    "shared file mapping",
    "out of shared memory",
    "No space left on device (28)",
)


def remedy_for(error: Exception) -> str | None:
    """What happened and what to do, for errors of the machine; None for those of the program."""
    reason = reason_of(error)
    if isinstance(error, RuntimeError) and any(sign in reason for sign in SHARED_MEMORY_SIGNS):
        return (
            f"the memory that processes share ran out ({reason}). Give a container more of it "
            "(docker run --shm-size 2g), or fewer --workers."
        )
    if is_out_of_memory(error):
        return (
            f"memory ran out ({reason}). Less memory: --recompute true (of RRDBs), a larger "
            "--accumulate, fewer --workers, a smaller --psnr.patch or --gan.patch (with a VGG "
            "discriminator, before its first step)."
        )
    if "Too many open files" in reason:
        return f"{reason.rstrip('. ')}. Raise the limit (ulimit -n 4096), or give fewer --workers."
    if isinstance(error, LOST_WORKER) or any(sign in reason for sign in LOST_WORKER_SIGNS):
        return (
            f"a process that cuts crops died: {reason.rstrip('. ')}. "
            "Most often memory ran out: give fewer --workers."
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile fails here ({reason}): leave out --compile, or mend what it needs."
    if Ranks.of_torchrun().count > 1 and is_lost_connection(error):
        return (
            f"another process of this run ended or cannot be reached ({reason}); what ended it is "
            "in its own message or torchrun's."
        )
    return None


def reason_of(error: Exception) -> str:
    """The line that says most: the last of a worker's traceback, of others mostly the first."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Caught "):
        return lines[-1]
    return lines[1] if lines[0].endswith(" raised:") and lines[1:] else lines[0]  # torch.compile's
