"""A network's answers to the same noise, after its training and after it was rebuilt.

They differ if training left something in the network that is neither parameter nor buffer: then
what is measured is not what was trained. Answers cross as text; the main process compares them.
"""

from __future__ import annotations

import base64

import torch
from torch import nn

from archloop.sandbox.candidate import state
from archloop.sandbox.candidate.network import check_logits, noise
from archloop.sandbox.job import CandidateJob

_IMAGES = 8


def answer(
    net: nn.Module, job: CandidateJob, device: torch.device, *, channels_last: bool
) -> str | None:
    """The logits in evaluation mode, float32 in base64; ``None``: it is random, or fails."""
    state.set_eval(net)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    try:
        with torch.no_grad():
            found = []
            for _ in range(2):
                inputs = noise(_IMAGES, job.shape).to(device).contiguous(memory_format=layout)
                logits = net(inputs)
                check_logits(logits, _IMAGES, job.classes)
                found.append(logits.detach().as_subclass(torch.Tensor).float().cpu().contiguous())
            if not torch.allclose(*found, rtol=1e-3, atol=1e-5):  # type: ignore[misc]
                return None
            return base64.b64encode(found[0].numpy().tobytes()).decode()
    except Exception:  # noqa: BLE001 - whether it works on images is found out elsewhere
        return None
