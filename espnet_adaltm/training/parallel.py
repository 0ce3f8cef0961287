"""Models of several processes."""

import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.trainer import TrainerOptions
from torch import nn

from espnet_adaltm.errors import UserError


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


def wrap(model: nn.Module, options: TrainerOptions, distributed: DistributedOption) -> nn.Module:
    """Wrap a model for several processes or devices.

    Buffers that are not saved (such as base and task vectors of a merge) never change, so that
    sending them at every forward would be a waste.

    Raises:
        UserError: Several GPUs in one process.
    """
    if not distributed.distributed:
        if distributed.ngpu > 1:
            raise UserError(
                "several GPUs in one process are not supported: give "
                "--multiprocessing_distributed true, or start through espnet2.bin.launch"
            )
        return model
    saved = set(model.state_dict())
    ignored = [name for name, _ in model.named_buffers() if name not in saved]
    parallel = nn.parallel.DistributedDataParallel
    parallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    device = [torch.cuda.current_device()] if distributed.ngpu == 1 else None
    wrapped = parallel(
        model,
        device_ids=device,
        output_device=device[0] if device else None,
        find_unused_parameters=options.unused_parameters,
        gradient_as_bucket_view=options.gradient_as_bucket_view,
    )
    if options.ddp_comm_hook is not None:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(None, getattr(default_hooks, options.ddp_comm_hook))
    return wrapped
