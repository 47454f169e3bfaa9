"""Every number of the published systems that can be computed, beside what was published; prints docs/papers.md.

python benchmarks/papers.py > docs/papers.md
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator

from paper_numbers import (
    Row,
    block_item_rows,
    block_rows,
    flop_rows,
    fmec_rows,
    hardswish_notes,
    proxyless_rows,
    rep_net_rows,
    tinytl_account,
    tinytl_rows,
    top_k_rows,
    tune_rows,
)


def main() -> None:
    print("\n".join(page()))


def page() -> Iterator[str]:
    """Yield the page's parts: the text between the tables and the tables."""
    yield HEAD
    for section in SECTIONS:
        yield from section()


def table(rows: Iterable[Row], unit: str) -> str:
    """Return a table of numbers in ``unit``, with the difference in the last digits that were published."""
    lines = [f"| {unit} | published | computed | difference | |", "|---|--:|--:|--:|---|"]
    for row in rows:
        computed = f"{row.computed:.{row.digits}f}"
        if row.published is None:
            lines.append(f"| {row.what} | | {computed} | | {row.remark} |")
        else:
            difference = f"{round(row.computed - row.published, row.digits) + 0.0:+.{row.digits}f}"
            lines.append(f"| {row.what} | {row.published:g} | {computed} | {difference} | {row.remark} |")
    return "\n".join(lines)


def tinytl() -> Iterator[str]:
    yield TINYTL_TEXT
    yield table(tinytl_rows(), "MB")
    yield TINYTL_TRAPS.format(
        bias=next(note for note in tinytl_account("TinyTL-B").notes),
        hardswish=next(note for note in hardswish_notes() if "profiler" in note),
    )


def rep_net() -> Iterator[str]:
    yield REP_NET_TEXT
    yield table(rep_net_rows(), "MB")


def mobiletl() -> Iterator[str]:
    yield MOBILETL_TEXT
    yield table(block_rows(), "MB, or %")
    yield "\nItem by item, the rule as arithmetic on the left and the recorded block on the right:\n"
    yield table(block_item_rows(), "MB")
    yield TOP_K_TEXT
    yield table(top_k_rows(), "MobileNetV3-Small, N=8, 10 classes")
    yield FLOPS_TEXT
    yield table(flop_rows(), "MFLOPs, or %")
    yield PROXYLESS_TEXT
    yield table(proxyless_rows(), "MB")
    yield PROXYLESS_REMARK


def fmec() -> Iterator[str]:
    yield FMEC_TEXT
    yield table(fmec_rows(), "MB per sample, 224")


def tune() -> Iterator[str]:
    yield TUNE_TEXT
    yield table(tune_rows(), "GiB, ResNet-50, N=64")


HEAD = """# Published numbers

Written by `benchmarks/papers.py`: each number computed from a step recorded on fake tensors, beside the published
one. Nothing is fitted. MB is 1,000,000 bytes, N is the batch.

These are the papers' own ways to count, **not what PyTorch needs**: no gradients, no optimizer, no temporaries in
the backward, frozen parameters in 8 bits. `memplan.memory.accounting.account` gives them for any recorded step;
what a step really needs is on every other page."""

TINYTL_TEXT = """
## TinyTL

Memory = parameters (4 bytes each that trains, 1 each that is frozen) + N times the peak. The peak is the largest
of: what a layer needs to compute (its input; a convolution's or linear layer's output too, by one group) + what was
kept before it + the input of the block with a shortcut around it. A convolution, linear layer or norm keeps its
input if its weight trains; a ReLU one bit per element as soon as anything needs a backward; a smooth activation its
input.

ProxylessNAS-Mobile with group norm, standardised weights and lite residual branches (`proxyless_mobile_tinytl`),
N=8, 224x224, 102 classes. The paper's figure is in brackets; beside it stands a reproduction of it from the
published rules, which has more digits.
"""

TINYTL_TRAPS = """
In the first four rows the peak is little more than one layer's own need in the forward (16x112x112 to 48x112x112,
25.69 MB for the batch), not what is kept.

What this way of counting leaves out is said with the result, in `notes`:

- TinyTL-B: {bias}.
- MobileNetV3-Small, full: {hardswish}. Its hooks are on classes, and `nn.Hardswish` is not one of them.

Where a norm's input is needed and not counted, memplan's own figures count it."""

REP_NET_TEXT = """
## Rep-Net

TinyTL's way of counting; the side network, its batch norms and its standardised weights as in the released code,
102 classes. The published figure is that of the side network and the classifier; the released training script
trains the biases of the frozen network too, which adds 0.05 MB.
"""

MOBILETL_TEXT = """
## MobileTL

Kept activations of one block, 96 to 576 to 96 channels, 7x7, N=8, nothing else counted: convolutions keep their
input, a norm whose scale trains its input and a float per channel, ReLU6 two bits per element, hard-swish its
input. With MobileTL the two inner norms train their shift only and keep nothing, and activations keep one bit.
"""

TOP_K_TEXT = """
Fine-tuning the last 5 blocks against all of them: kept activations + 4 bytes for each parameter that trains + 1 for
each that is frozen. ReLU keeps one bit, squeeze-and-excite the map that it scales.
"""

FLOPS_TEXT = """
FLOPs of the same steps. The paper does not say how it counts what is not a product. Here every op of PyTorch's
decompositions counts one for each element (a variance three), and frozen norms use running statistics: the forward
then comes out 1 % above and the backward 3 to 4 % below the published one, and the saving one point below.
Convolutions and linear layers alone, which is what PyTorch's and memplan's `flops` count, give the last row.
"""

PROXYLESS_TEXT = """
ProxylessNAS-Mobile, N=8, 224; published figures are read off a plot, on CIFAR-10. Computed: parameters + peak, the
peak by TinyTL's rule with MobileTL's kept activations. 102 classes fit the first figures; with the 10 of CIFAR-10
each computed row is 0.47 MB lower.
"""

PROXYLESS_REMARK = """
For MobileTL up to k=3 and vanilla at k=1 the peak is the forward need of one layer low in the network, 25.69 MB,
and the figures agree. The other four, where kept activations decide, were published higher than computed: each is
parameters + kept + 12.97 MB, within the plot's 0.03 MB. The kept activations and the steps from k to k therefore
agree. What the 12.97 MB are that are held beside them at the published peak, the sources do not say; no layer that
trains there needs more than 2.51 MB while it computes (320 to 1280 channels, 7x7). They are not added."""

FMEC_TEXT = """
## Activation Memory Reduction (FMEC 2023)

Only the abstract is public; the needs of single layers by TinyTL's rule, which say where channels must go.
"""

TUNE_TEXT = """
## Efficient ConvBN Blocks, "Tune"

What autograd keeps with running statistics, and what is left when no norm keeps its input and each of the
convolutions keeps its folded weight. (5.18 and 2.88 GB were measured on a GPU, with all that a step needs.)
"""

SECTIONS: tuple[Callable[[], Iterator[str]], ...] = (tinytl, rep_net, mobiletl, fmec, tune)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
