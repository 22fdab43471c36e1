"""Fits the linears of a group: what they put out from the student's input is to be what the checkpoint's do."""

from typing import Any

import torch

from bitnet_core.calibration.documents import Batch
from bitnet_core.calibration.llama_groups import Group
from bitnet_core.calibration.moments import Inputs, Moments, gather_moments
from bitnet_core.calibration.solve import DAMPING, fit
from bitnet_core.calibration.work import Work
from bitnet_core.errors import CoreError


def fit_group(work: Work, group: Group, student: Any, teacher: Any) -> float:
    """Give the group's linears of the student's layer their ternary weights; returns the damping that it took."""
    linears = group.modules(student.layer)
    weight_OI = torch.cat([linear.weight for linear in linears]).float()

    def inputs(batch: Batch) -> Inputs:
        ours, theirs = (stream.input_NI[batch.rows].to(work.device) for stream in (student, teacher))
        if not group.residual:
            return Inputs(ours, theirs, None)
        behind_ND = teacher.hidden_ND[batch.rows].to(work.device) - student.hidden_ND[batch.rows].to(work.device)
        return Inputs(ours, theirs, behind_ND / group.scale)

    moments = gather_moments(lambda: map(inputs, work.batches), weight_OI)
    if not bool(torch.isfinite(moments.correction_IO.sum() + moments.input_II.sum())):
        raise CoreError(
            f"{work.start.folder}: the inputs of {', '.join(group.linears)} are not finite numbers",
            'set train.precision = "fp32", or start from another checkpoint',
        )
    if work.device.type == "mps":  # it has no float64
        moments, weight_OI = Moments(moments.input_II.cpu(), moments.correction_IO.cpu()), weight_OI.cpu()
    fitted = fit(weight_OI, moments)
    rows = [linear.out_features for linear in linears]
    for linear, weight, log_scale in zip(
        linears, fitted.weight_OI.split(rows), fitted.log_scale_O.split(rows), strict=True
    ):
        linear.weight.copy_(weight)
        linear.log_scale.copy_(log_scale)
    return max(fitted.damping, DAMPING)
