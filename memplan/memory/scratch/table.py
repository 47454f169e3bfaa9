"""The formulas by op name, and the one function that looks them up."""

from __future__ import annotations

from collections.abc import Callable

from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch import attention, elementwise, masks, matrices, normalization, recurrent, resampling
from memplan.memory.scratch.convolution import convolution, convolution_backward

Formula = Callable[[tuple[Argument, ...], tuple[TensorView | None, ...], Machine], int]

FORMULAS: dict[str, Formula] = {
    "aten.convolution.default": convolution,
    "aten.convolution_backward.default": convolution_backward,
    "aten._scaled_dot_product_flash_attention_for_cpu.default": attention.flash_forward,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": attention.flash_backward,
    # recurrent layers
    "aten.mkldnn_rnn_layer.default": recurrent.recurrent,
    "aten.mkldnn_rnn_layer_backward.default": recurrent.recurrent_backward,
    # norms
    "aten.native_batch_norm.default": normalization.batch_norm,
    "aten.native_batch_norm_backward.default": normalization.batch_norm_backward,
    "aten.native_layer_norm.default": normalization.layer_norm,
    "aten.native_layer_norm_backward.default": normalization.layer_norm_backward,
    "aten.native_group_norm.default": normalization.group_norm,
    "aten.native_group_norm_backward.default": normalization.group_norm_backward,
    # matrices
    "aten.mm.default": matrices.product,
    "aten.addmm.default": matrices.product,
    "aten.bmm.default": matrices.product,
    "aten.baddbmm.default": matrices.product,
    "aten.mv.default": matrices.product,
    # pointwise, softmax, losses, reductions
    "aten._softmax.default": elementwise.dense_first,
    "aten._log_softmax.default": elementwise.dense_first,
    "aten._softmax_backward_data.default": elementwise.dense_first_two,
    "aten._log_softmax_backward_data.default": elementwise.dense_first_two,
    "aten._safe_softmax.default": elementwise.safe_softmax,
    "aten.gelu_backward.default": elementwise.gelu_backward,
    "aten.native_dropout.default": elementwise.whole_gradient,
    "aten.native_dropout_backward.default": elementwise.whole_gradient,
    "aten.mse_loss.default": elementwise.reduced_loss,
    "aten.smooth_l1_loss.default": elementwise.reduced_loss,
    "aten.huber_loss.default": elementwise.reduced_loss,
    "aten.binary_cross_entropy_with_logits.default": elementwise.logit_loss,
    "aten.logsumexp.default": elementwise.whole_gradient,
    "aten.sum.default": elementwise.summed,
    "aten.sum.dim_IntList": elementwise.summed,
    "aten.mean.dim": elementwise.averaged,
    "aten.cumsum.default": elementwise.converted,
    "aten.add.Tensor": elementwise.promoted,
    "aten.add_.Tensor": elementwise.promoted,
    "aten.sub.Tensor": elementwise.promoted,
    "aten.sub_.Tensor": elementwise.promoted,
    "aten.mul.Tensor": elementwise.promoted,
    "aten.mul_.Tensor": elementwise.promoted,
    "aten.div.Tensor": elementwise.promoted,
    "aten.div_.Tensor": elementwise.promoted,
    # moving data
    "aten.roll.default": elementwise.roll,
    "aten.im2col.default": elementwise.unfold_windows,
    "aten.embedding.default": elementwise.dense_second,
    "aten.embedding_dense_backward.default": elementwise.dense_first_two,
    "aten.argsort.default": elementwise.whole_gradient,
    "aten.median.default": elementwise.whole_gradient,
    "aten._fft_c2r.default": elementwise.whole_gradient,
    # pooling, padding, interpolation
    "aten.max_pool2d_with_indices.default": resampling.pool,
    "aten.max_pool2d_with_indices_backward.default": resampling.pool_backward,
    "aten.avg_pool2d.default": resampling.pool,
    "aten.avg_pool2d_backward.default": resampling.pool_backward,
    "aten._adaptive_avg_pool2d_backward.default": resampling.pool_backward,
    "aten.adaptive_max_pool2d_backward.default": resampling.pool_backward,
    "aten.reflection_pad2d_backward.default": resampling.pool_backward,
    "aten.replication_pad2d_backward.default": resampling.pool_backward,
    "aten.upsample_nearest2d.default": resampling.nearest,
    "aten._upsample_nearest_exact2d.default": resampling.nearest,
    "aten.upsample_bilinear2d.default": resampling.linear,
    "aten.upsample_bicubic2d.default": resampling.cubic,
    "aten.upsample_bicubic2d_backward.default": resampling.dense_gradient,
    "aten._upsample_bilinear2d_aa.default": resampling.antialiased,
    "aten._upsample_bilinear2d_aa_backward.default": resampling.dense_gradient,
    "aten._upsample_bicubic2d_aa.default": resampling.antialiased,
    "aten._upsample_bicubic2d_aa_backward.default": resampling.dense_gradient,
    "aten.max_pool2d_with_indices_backward.grad_input": resampling.pool_backward,
    "aten.adaptive_max_pool2d_backward.grad_input": resampling.pool_backward,
    # masks
    "memplan.pack_mask.default": masks.pack_mask,
    "memplan.apply_mask.default": masks.apply_mask,
    "memplan.pack_window.default": masks.pack_window,
    "memplan.unpack_window.default": masks.unpack_window,
}


def scratch_bytes(
    target: str, args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine
) -> int:
    """Bytes that an op holds beyond its results at its worst moment.

    Only CPU kernels are modelled: on any other device the answer is 0. So it is for an op without a formula, which
    on CPU was measured to hold nothing, or a few bytes of wrapped scalars.

    Args: ``args`` in schema order with defaults filled in; ``outputs`` flattened, None where nothing was produced.
    """
    formula = FORMULAS.get(target)
    if formula is None or machine.device != "cpu":
        return 0
    return max(0, formula(args, outputs, machine))
