"""Data-parallel training of the coefficients: what one process computes, accumulated or not."""

import pytest
import torch
import torch.distributed as dist
from merging_common import base_encoder, readout, vectors
from torch.nn.parallel import DistributedDataParallel

from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for

pytestmark = pytest.mark.integration
LENGTHS = torch.tensor([600])


def model_and_parts():
    base = base_encoder()
    model = MergedEncoder(base, vectors(base), coefficients_for(base, ["asr", "ser"]))
    generator = torch.Generator().manual_seed(9)
    return model, [torch.randn(1, 600, generator=generator) for _ in range(4)]


def work(rank, rendezvous, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model, parts = model_and_parts()
    wrapped = DistributedDataParallel(model)
    mine = parts[2 * rank : 2 * rank + 2]
    found = []
    for accumulated in (False, True, True):
        model.zero_grad()
        with model.accumulating(2 if accumulated else 1):
            for part in mine:
                readout(wrapped(part, LENGTHS)).backward()
        found.append(model.coefficients.raw.grad.clone())
    torch.save(found, f"{out}{rank}")
    dist.destroy_process_group()


def test_two_processes_bring_the_mean_gradient(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path / "rendezvous", tmp_path / "rank"), nprocs=2)
    model, parts = model_and_parts()
    for part in parts:
        (readout(model(part, LENGTHS)) / 2).backward()
    wanted = model.coefficients.raw.grad
    for rank in range(2):
        for found in torch.load(tmp_path / f"rank{rank}", weights_only=True):
            assert ((found - wanted).norm() / wanted.norm()).item() < 1e-5
