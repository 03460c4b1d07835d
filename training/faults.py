"""What a machine does to a run, in words."""

from training.ranks import Ranks, is_lost_connection
from upscaling.devices import is_out_of_memory

# What reading from a worker that has just died raises, where torch does not yet know that it has.
LOST_WORKER = (ConnectionResetError, ConnectionRefusedError, EOFError)


def remedy_for(error: Exception) -> str | None:
    """What happened and what to do, for errors of the machine; None for those of the program."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    if is_out_of_memory(error):
        return (
            f"memory ran out ({reason}). Less memory: --recompute true (of RRDBs), a larger "
            "--accumulate, fewer --workers, a smaller --psnr.patch or --gan.patch (with a VGG "
            "discriminator, before its first step)."
        )
    if "DataLoader worker (pid" in reason or isinstance(error, LOST_WORKER):
        return (
            f"a process that cuts crops died: {reason.rstrip('. ')}. "
            "Most often memory ran out: give fewer --workers."
        )
    if Ranks.of_torchrun().count > 1 and is_lost_connection(error):
        return (
            f"another process of this run ended or cannot be reached ({reason}); what ended it is "
            "in its own message or torchrun's."
        )
    return None
