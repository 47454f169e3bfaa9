"""transformers' models from a configuration: heads, inputs, directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from memplan.errors import AnalysisError, UsageError
from memplan.sources import BuiltModel, InputSpec, build, resolve
from memplan.sources.packages import is_installed

pytestmark = pytest.mark.skipif(not is_installed("transformers"), reason="transformers is not installed")

TINY_BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
TINY_GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
TINY_VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}


def save(directory: Path, config: dict[str, Any]) -> str:
    directory.joinpath("config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.parametrize(
    ("model_type", "head", "inputs"),
    [
        ("bert", "BertForSequenceClassification", {"input_ids": (2, 128), "attention_mask": (2, 128)}),
        ("distilbert", "DistilBertForSequenceClassification", {"input_ids": (2, 128), "attention_mask": (2, 128)}),
        ("gpt2", "GPT2LMHeadModel", {"input_ids": (2, 128), "attention_mask": (2, 128)}),
        ("llama", "LlamaForCausalLM", {"input_ids": (2, 128), "attention_mask": (2, 128)}),
        ("vit", "ViTForImageClassification", {"pixel_values": (2, 3, 224, 224)}),
        ("resnet", "ResNetForImageClassification", {"pixel_values": (2, 3, 224, 224)}),
        ("mobilevit", "MobileViTForImageClassification", {"pixel_values": (2, 3, 256, 256)}),
        (
            "whisper",
            "WhisperForConditionalGeneration",
            {"input_features": (2, 80, 3000), "decoder_input_ids": (2, 128), "decoder_attention_mask": (2, 128)},
        ),
        (
            "t5",
            "T5ForConditionalGeneration",
            {
                "input_ids": (2, 128),
                "attention_mask": (2, 128),
                "decoder_input_ids": (2, 128),
                "decoder_attention_mask": (2, 128),
            },
        ),
        ("audio-spectrogram-transformer", "ASTForAudioClassification", {"input_values": (2, 1024, 128)}),
        ("encodec", "EncodecModel", {"input_values": (2, 1, 16000)}),
    ],
)
def test_head_and_inputs_of_a_model_type(model_type: str, head: str, inputs: dict[str, tuple[int, ...]]) -> None:
    source = resolve(f"hf:{model_type}", batch_size=2)
    assert (source.name, source.origin, source.dtype) == (model_type, "transformers", "float32")
    assert {name: spec.shape for name, spec in source.kwargs.items()} == inputs
    assert type(build(source, "meta").module).__name__ == head


def test_token_ids_stay_below_the_vocabulary_and_one_token_is_padding(tmp_path: Path) -> None:
    source = resolve(save(tmp_path, TINY_BERT), batch_size=3)
    assert source.kwargs["input_ids"] == InputSpec((3, 40), "int64", high=50)
    inputs = build(source, "cpu").kwargs
    assert inputs["input_ids"].min() >= 0
    assert inputs["input_ids"].max() < 50
    assert inputs["attention_mask"].sum() == 3 * 40 - 1
    assert inputs["attention_mask"][2, 39] == 0


def test_training_keeps_no_cache(tmp_path: Path) -> None:
    module = build(resolve(save(tmp_path, TINY_GPT2)), "meta").module
    assert module.config.use_cache is False  # type: ignore[union-attr]  # a transformers model has a config


@pytest.mark.parametrize("config", [TINY_BERT, TINY_GPT2, TINY_VIT], ids=lambda config: config["model_type"])
def test_meta_and_cpu_builds_have_the_same_tensors(
    config: dict[str, Any], tmp_path: Path, assert_same_tensors: Callable[[BuiltModel, BuiltModel], None]
) -> None:
    source = resolve(save(tmp_path, config), batch_size=2)
    assert_same_tensors(build(source, "meta"), build(source, "cpu"))


class Results(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Lists every operator whose result has an axis, with the shape of the result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.rows: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.dim()]
        if shapes and func not in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            self.rows.append((str(func), shapes))
        return result


@pytest.mark.parametrize("config", [TINY_BERT, TINY_GPT2], ids=lambda config: config["model_type"])
def test_the_padded_mask_makes_a_fake_step_take_the_kernels_of_a_real_one(
    config: dict[str, Any], tmp_path: Path
) -> None:
    model = build(resolve(save(tmp_path, config), batch_size=2), "cpu")
    real, fake = Results(), Results()
    with real:
        model.module(**model.kwargs)
    fake_mode = FakeTensorMode()
    inputs = tree_map_only(Tensor, fake_mode.from_tensor, dict(model.kwargs))
    state = {name: fake_mode.from_tensor(tensor) for name, tensor in model.module.named_parameters()}
    buffers = {name: fake_mode.from_tensor(tensor) for name, tensor in model.module.named_buffers()}
    with fake_mode, fake:
        functional_call(model.module, {**state, **buffers}, (), inputs)
    assert fake.rows == real.rows


def test_an_architecture_in_the_configuration_is_built(tmp_path: Path) -> None:
    source = resolve(save(tmp_path, {**TINY_BERT, "architectures": ["BertForMaskedLM"]}))
    assert source.classes is None
    assert type(build(source, "meta").module).__name__ == "BertForMaskedLM"


def test_the_dtype_of_the_configuration_is_used_unless_another_is_asked_for(tmp_path: Path) -> None:
    directory = save(tmp_path, {**TINY_VIT, "dtype": "bfloat16"})
    model = build(resolve(directory), "meta")
    assert {tensor.dtype for tensor in model.module.parameters()} == {torch.bfloat16}
    assert model.kwargs["pixel_values"].dtype == torch.bfloat16
    model = build(resolve(directory, dtype="float64"), "meta")
    assert {tensor.dtype for tensor in model.module.parameters()} == {torch.float64}


def test_input_and_classes_reach_the_model(tmp_path: Path) -> None:
    directory = save(tmp_path, TINY_VIT)
    source = resolve(directory, batch_size=2, input_shape=(1, 64, 64), classes=7)
    model = build(source, "cpu")
    assert isinstance(model.module, nn.Module)
    assert tuple(model.module(**model.kwargs).logits.shape) == (2, 7)
    assert source.classes == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (64,)}, "--input 64 is longer than the 40 positions of {0}; write at most 40"),
        ({"input_shape": (3, 8, 8)}, "--input 3x8x8 is not a shape that {0} takes; write for example 40"),
        (
            {"classes": 4},
            "--classes 4 does not apply to GPT2LMHeadModel, which is not a classifier; leave it out",
        ),
    ],
)
def test_an_option_that_does_not_apply_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = save(tmp_path, TINY_GPT2)
    with pytest.raises(UsageError) as raised:
        resolve(directory, **options)
    assert str(raised.value) == message.format(directory)


def test_an_unknown_model_type_is_refused_with_the_closest() -> None:
    with pytest.raises(UsageError, match=r"^no model type 'distilbart' in transformers; did you mean 'distilbert'"):
        resolve("hf:distilbart")
    with pytest.raises(UsageError, match=r"^no directory 'google/vit' with a config.json; memplan downloads nothing, "):
        resolve("hf:google/vit")
    with pytest.raises(
        UsageError, match=r"^hf:vision-encoder-decoder has no default configuration|has a configuration but"
    ):
        resolve("hf:vision-encoder-decoder")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no_such_type"}', "{}"])
def test_a_malformed_configuration_is_one_line(text: str, tmp_path: Path) -> None:
    tmp_path.joinpath("config.json").write_text(text)
    with pytest.raises(AnalysisError) as raised:
        resolve(str(tmp_path))
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'config.json'} is not a configuration that transformers can read: ")
    assert "\n" not in message
