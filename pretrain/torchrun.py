"""torchrun, leaving with the exit code of the process that failed first.

torch's own launcher turns every failure into exit code 1 below a page of traceback of its own. Here a wrong
configuration stays 2 and a run that was told to stop stays 75, so that schedulers and sweeps can tell; what failed
has printed why itself. Takes torchrun's options, as `python -m pretrain.torchrun --standalone -m pretrain …`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pretrain.launcher import network_problem
from pretrain.terminal import accept_every_character

_EXPLAINED = (2, 75)  # ConfigError.exit_code and pretrain.train.EXIT_STOPPED: nothing to add


def main(arguments: Sequence[str]) -> int:
    """Runs torchrun; returns the first failure's exit code, 128 + N for a death by signal N, or 0."""
    accept_every_character()
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    try:
        run.run(run.parse_args(list(arguments)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        if code not in _EXPLAINED:
            how = f"exit code {code}" if failure.exitcode >= 0 else f"signal {-failure.exitcode}"
            print(f"[fineline] rank {rank} (pid {failure.pid}) ended first, with {how}", file=sys.stderr, flush=True)
        return code
    except SignalException as error:
        return 128 + int(error.sigval)
    except (DistError, RendezvousError) as error:
        print(f"[fineline] {network_problem(error, None)}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
