"""Structure classes of networks of LEMUR, beside labels read off their code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from archloop.config import SandboxConfig
from archloop.corpus.seeds.lemur import LemurSource
from archloop.corpus.seeds.prepare import prepare
from archloop.novelty.structure import PLAIN, STRUCTURES, structure_class
from archloop.sandbox.host.client import Sandbox

pytestmark = pytest.mark.slow
LARGE = (3, 224, 224)
"""For networks that do not take smaller images."""
PARTS = Path(__file__).parents[1] / "data" / "torchvision_parts.py"
SETTINGS = {
    "attention_dropout": 0.1,
    "dropout_aux": 0.5,
    "norm_eps": 1e-5,
    "norm_momentum": 0.1,
    "norm_std": 0.02,
    "patch_size": 0.125,
    "stochastic_depth_prob": 0.1,
}
"""Hyperparameters of LEMUR that a run does not give."""

NAMED = {
    # A residual unit without attention, whatever the name says.
    "AirNet": "skip",
    "AirNet-626c3eb9": "skip",
    "AirNet-777bc9dc": "skip",
    "AirNet-97f31e02": "skip",
    # Grouped convolutions (one for each channel in the narrow stages), x * sigmoid(branch), a skip.
    "AirNext": "skip+gate+grouped+depthwise",
    "AirNext-1c889567": "skip+gate+grouped+depthwise",
    "AirNext-31e78268": "skip+gate+grouped+depthwise",
    "AirNext-41197f14": "skip+gate+grouped+depthwise",
    "AirNext-8c916d56": "skip+gate+grouped+depthwise",
    "AirNext-ff05392a": "skip+gate+grouped+depthwise",
    # Convolutions and linear layers in a row.
    "AlexNet": "plain",
    "AlexNet-355f849c": "plain",
    "AlexNet-69c52339": "plain",
    "AlexNet-a85563c1": "plain",
    "AlexNet-ad69700d": "plain",
    "AlexNet-bb84fa5d": "plain",
    # Bottlenecks with a skip.
    "BagNet": "skip",
    "BagNet-001bf3e2": "skip",
    "BagNet-560341b5": "skip",
    "BagNet-6ecd3fc7": "skip",
    "BagNet-7e541be1": "skip",
    "BagNet-7f792262": "skip",
    # Local reparametrisation: a convolution for the mean plus one for the deviation, times noise.
    "BayesianNet-024b0436": "skip",
    "BayesianNet-0901ac22": "skip",
    "BayesianNet-1": "skip",
    "BayesianNet-2": "skip",
    "BayesianNet-3": "skip",
    "BayesianNet-4f11c8da": "skip",
    "BayesianNet-588ebe09": "skip",
    # Residual blocks, in the first with groups; the dense path of the paper is not there.
    "DPN107": "skip+grouped",
    "DPN107-2de2628b": "skip+grouped",
    "DPN107-5b2b51fe": "skip+grouped",
    "DPN107-8c4f9030": "skip+grouped",
    "DPN131": "skip",
    "DPN131-42be581b": "skip",
    "DPN131-8e6e495b": "skip",
    "DPN131-c53a40b8": "skip",
    "DPN131-e8980802": "skip",
    "DPN68": "skip",
    "DPN68-3f573987": "skip",
    "DPN68-9693aa0b": "skip",
    "DPN68-a29dbe56": "skip",
    "DPN68-bfa699a3": "skip",
    "DPN68-c9cdb196": "skip",
    "DarkNet": "plain",
    "DarkNet-11e8caec": "plain",
    "DarkNet-d434ba1c": "plain",
    # Depthwise convolutions and a skip; a layer scale is no gate.
    "ConvNeXt": "skip+depthwise",
    "ConvNeXt-dda5bf19": "skip+depthwise",
    "DenseNet": "join",
    "DenseNet-8dbe9c05": "join",
    "DenseNet-bf465678": "join",
    # The time embedding that is added does not depend on the image.
    "Diffuser": "plain",
    # Inverted bottlenecks with squeeze-and-excitation; SiLU is no gate.
    "EfficientNet": "skip+gate+depthwise",
    # A mean over stacked columns.
    "FractalNet": "skip",
    "GoogLeNet": "join",
    # Pooled maps, scaled up and joined to what they were pooled from.
    "ICNet": "join",
    "ICNet-67ac663e": "join",
    "ICNet-8020fbd0": "join",
    "ICNet-e1aa9d01": "join",
    # Kernels of 1x7, 7x1, 1x3 and 3x1.
    "InceptionV3-1": "join+asymmetric",
    # Inverted bottlenecks.
    "MNASNet": "skip+depthwise",
    "MNASNet-3b1e639a": "skip+depthwise",
    "MNASNet-7201935e": "skip+depthwise",
    # Inverted bottlenecks with squeeze-and-excitation, then windows of attention.
    "MaxVit": "skip+gate+depthwise+attention",
    "MobileNetV2": "skip+depthwise",
    "MobileNetV2-b07c92be": "skip+depthwise",
    # The last three blocks are dilated.
    "MobileNetV3": "skip+gate+depthwise+dilated",
    # Outputs of experts times a softmax of the router, added up.
    "MoE-0707": "skip+gate",
    "MoE-0707-DenseNet": "skip+gate",
    "MoE-0707-1707-BagNet": "skip+gate",
    "MoE-0707-AirNext": "skip+gate+grouped+depthwise",
    # Complex numbers: products with the phase.
    "MoE-0707-ComplexNet": "skip+gate",
    "MoEv2": "skip+gate",
    "MoEv4": "skip+gate",
    "MoEv5": "skip+gate",
    "MoEv6": "skip+gate",
    # The mean and the maximum of the maps are joined.
    "MoEv7": "skip+join+gate",
    "MoEv8": "skip+gate",
    # Bottlenecks with groups of eight channels and squeeze-and-excitation.
    "RegNet": "skip+gate+grouped",
    "ResNet": "skip",
    "ResNet-708bfd82": "skip",
    # One half of the channels through depthwise convolutions, joined to the other, shuffled.
    "ShuffleNet": "join+depthwise",
    "ShuffleNet-2bb109c0": "join+depthwise",
    "ShuffleNet-41ecc90b": "join+depthwise",
    "ShuffleNet-6326085d": "join+depthwise",
    "SqueezeNet-07652603": "join",
    "SqueezeNet-1": "join",
    "SqueezeNet-165b4b2a": "join",
    "SqueezeNet-2": "join",
    # Four neighbours are joined where patches are merged.
    "SwinTransformer": "skip+join+attention",
    # What the way down gives is not used on the way up, and no block has attention.
    "UNet2D": "plain",
    "UNet2D-5c9cad65": "plain",
    "UNet2D-8432db56": "plain",
    "UNet2D-a6461439": "plain",
    "VGG": "plain",
    "VGG-485c0cc2": "plain",
    # The class token that is joined does not depend on the image, nor do positions.
    "VisionTransformer": "skip+attention",
    "VisionTransformer-d602c220": "skip+attention",
    # A chain like AlexNet's.
    "a16b25d485622212877ca354ebc2a363": "plain",
}

DRAWN = {
    # Hardswish, written out.
    "rag-49574076ae0e39c976bd7bb79867ed4b": "plain",
    # FReLU, the larger of a value and a depthwise convolution of it: no sum.
    "rag-b658b8e7562c321432cbc9633d44fe75": "depthwise",
    # Pooled minus not pooled, of PoolFormer.
    "rag-00911d252d4cb74739ac9e1a68ef3b33": "skip",
    "rag-25cf515758fc30e9a35afec54261e576": "plain",
    # Large kernel attention: a product with dilated depthwise convolutions.
    "rag-f683c87618662f72ab16141ec6372ff6": "gate+depthwise+dilated",
    # FiLM that is not used.
    "rag-0fdf88ba0237e435002113593b685505": "plain",
    "rag-30d6e0b150a89f026ecf5b09f2f8a454": "plain",
    # An embedding looked up by argmax.
    "rag-4e94508cec6e3766a1de0844f2c482ac": "plain",
    "rag-bf65137b6279d2646d39654bd9692181": "plain",
    "rag-1b0e409549e28d6e4d3b98333cfb953a": "plain",
    "rag-4468192fa3995fbe02092c2517e55d5c": "gate+depthwise+dilated",
    # An adapter with a residual.
    "rag-1a3d3abd0ca09ae9ee40b1402cdc000d": "skip",
    # LayerScale.
    "rag-c83f0137ea1197c2c5c1145efae16cb0": "plain",
    "alt-nn2-0dfa32e782bb35f4031a70b1ce159665": "plain",
    "alt-5038e68a2fd8a8519db0f78857ab8b02": "plain",
    "alt-a0303d17022e8f53aac5d89336a9bb5e": "plain",
    "alt-1b7ab63f4014c70acec1da0a1516efa3": "plain",
    "alt-d9206ac15657d4469feff3dfd661febe": "plain",
    # Spatial attention: two reductions joined, convolved, multiplied.
    "rag-8cb86d3e09e747e778247634168468d8": "join+gate",
    "rag-197efa32da8ecec44d919465d4ccf2d6": "plain",
    # An encoding of the time, which is no image.
    "rag-088f6d9b08e4c58963415855b34c08fb": "plain",
    "rag-1ee801abd862dd60e24cd5d608f86dd3": "plain",
    # Random coordinates joined to the features.
    "rag-81dd8acfb5b816a216c232a683ccd0cb": "plain",
    "rag-03e28fa1a081c83e30e2657c373c0699": "plain",
    "rag-52eb5014fdc5ec909229c1fce0f8b8b2": "plain",
    "rag-82a1a7a9fa27e7d23df82915aca29fc8": "plain",
    # A diffusion model; the time is no image.
    "alt-nn1-16a7931d99796407de4691357f1e8228": "plain",
    # A fire block.
    "rag-37ddbb10b92d56c440527e73198342a0": "join",
    "rag-77dc57b7411c9c0454d78d4bdf47b633": "plain",
    "rag-31dfd208dbcfd1d2c91c5bd88c71f00d": "plain",
    "rag-34ad9aaa890efd340ced58d411aa4053": "plain",
    # Attention over channels.
    "rag-dcc5272042c376f70d005b3197c63ce1": "attention",
    # Mixed convolutions with 16 groups of two channels.
    "rag-0bcfa6df39b08927564cb72edd35d9b8": "join+grouped",
    # Local patch interaction.
    "rag-97c20704c583dd882e4a22ad01721557": "depthwise",
    # A bottleneck.
    "rag-5c9f314d5eab25f28d9571ae1f5d4947": "skip",
    "rag-f93fd848edc557f797ece73d0cd8bc6a": "plain",
    "rag-b8085d7d3cc4cd96b506a379a35e9335": "plain",
    "rag-1819682f79107a5955c1e9dbb15918eb": "plain",
    # An Inception block.
    "rag-08763aeca1e7e35f916501c3711fcd33": "join",
    # SiLU, written out.
    "rag-fef29218f23aecc45029cc102b2e0299": "plain",
    # Pooled maps joined.
    "rag-f7a4f505f32a898f24ed309d4e546d73": "join",
    # EvoNorm, written out.
    "rag-6f4c379d3d72ada67ed786cbb49a608a": "plain",
    # Selective kernels: branches joined, viewed apart and summed, first as they are, then weighted
    # by a softmax over logits that are joined.
    "rag-04b5b215909876acbf5aa88bbdbe0ab5": "skip+join+gate+grouped+dilated",
    # A bottleneck with its shortcut off, joined to another branch.
    "rag-f990d490274023908b29b07ebf305412": "join",
    # The same with its shortcut on.
    "rag-14f236f030b03008f4577cb5a9b6c13c": "skip+join",
    "rag-15bf8b997231f012c2ae7bc60ae21a5c": "plain",
    # Halves through a depthwise convolution and a Fourier filter, joined, channel by channel.
    "rag-01d219472fd0537039531d8efcdebef9": "join+depthwise",
    # A bias of positions, for an attention that is not used.
    "rag-47dbae262101801a919047a0a90447b3": "plain",
    # Inverted bottlenecks.
    "rag-ee40839abf7ec36f37c63bf8fcdacecb": "skip+depthwise",
    # MLP-Mixer.
    "rag-6e0656bfc81dba34b069561184ebfcec": "skip",
}
"""A sample of the generated ones: of 60 drawn of ``rag-`` and 12 of ``alt-``, those that compute
something else than another one."""

STRUCTURED = {
    # Halves that are added.
    "rag-94fd579901edbb7dddce8cf3182e472b": "skip",
    "rag-14d7ad636560a1956a93772fcdc7825c": "gate",
    # Positions from a depthwise convolution.
    "rag-c7e2b8e1d869ba880190c99f964568cc": "skip+depthwise",
    # Residual, with instance normalisation.
    "rag-1e9b13d13db48f60e419aabb92cbe737": "skip",
    # Squeeze-and-excitation.
    "rag-05ad13c3d7359155e4b9a2c997a4faa4": "gate",
    "rag-591f10d33a89c12b716d6dbe84d780ca": "gate",
    # SwiGLU.
    "rag-42be4950c9c0f9440efa3db03b99b2e1": "gate",
    # Four groups.
    "rag-99a231116fb26af81baa3828f0285428": "grouped",
    "rag-7200bc2e7d18555c4d18e7d718a06cfe": "gate",
    # An activation whose slope is computed by two convolutions.
    "rag-08cb5545fe28658f0c301e97db032312": "skip+gate",
    # Positions again.
    "rag-00b59653488b5c497a057dcabac390e3": "skip+depthwise",
    # GeGLU.
    "rag-daaf39952431e04f58e5a9c4060438dc": "gate",
    # A fire block.
    "rag-666b998eb0b374559cbe20432d1431b4": "join",
    # Two global poolings joined.
    "rag-296ac45b80f8d563c0b8de5a9b91651d": "join",
    # Halves that are joined again, as they were.
    "rag-afbdb97b396acd67cefc28bc552e61e8": "plain",
    # Attention without weights.
    "rag-4517b1bab4bd2ac9c2eb6e2b6c445af8": "attention",
    # Ghost modules.
    "rag-1001e519c699ab43f40f9f4f53f29b22": "join+depthwise",
    # A sum of dilated branches.
    "rag-79da21a836bd6b4d0af37a77c32ab65c": "skip+dilated",
    # Gated convolutions.
    "rag-19629f063222b052145f4184063234a1": "gate",
    # A spatial gating unit, of a value joined to itself.
    "rag-d010de4b92db63be67212499c3a4bff6": "gate",
    # Two global poolings joined.
    "rag-1ae854e87c6ed948e6d4315e8a2b5c6b": "join",
    # A ghost convolution.
    "rag-928f4737f6ba405195c45e17e7840e49": "join+depthwise",
    # A map times what a linear layer says of it.
    "rag-4f6094b27997fbaa2943217801e4b066": "gate",
    # Spherical harmonics: products and differences of coordinates, stacked.
    "rag-e632483404bfbc29bf148884d7295579": "skip+join+gate",
    # Convolutions of 1x3 and 3x1 with a shortcut.
    "rag-41af9f4f05aa8e3e8febf73ab68d98cc": "skip+asymmetric",
    # A stem of two branches.
    "rag-5a0ddde6bc0da2ddc57bc0195be20158": "join",
    # A bottleneck.
    "rag-9072ed9706fb41fe4ef11217576f81f2": "skip",
    # A depthwise-separable convolution.
    "rag-e624509189e42015f006fa3b9a7c90c6": "depthwise",
    # Attention of one token to all.
    "rag-85febad37ebd52b364aaefe130695389": "attention",
    # Selective kernels over twice the same map.
    "rag-d79938897b33cc46250a3b1c02e58d02": "gate",
    # Cross-stage partial blocks with residuals.
    "rag-fc485ab1df772617b46259f23eb5df57": "skip+join",
    # A bottleneck.
    "rag-43a6072d6d023316bbc73e6a46f7a2fc": "skip",
    # A large depthwise kernel; a layer scale.
    "rag-18c0fd31521b14fda3159115c4607892": "depthwise",
    # Factorised attention, and an encoding that is zero.
    "rag-561b73298cfbb7af90a4b4b84bb079d1": "attention",
}
"""A second sample of ``rag-``, of blocks with other names, those that are said to be structured."""

LABELS = NAMED | DRAWN | STRUCTURED


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(build_seconds=120)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    return {network.name: network.code for network in LemurSource(None).networks()}


def class_of(sandbox: Sandbox, code: str) -> str | None:
    code = self_contained(code)
    code = prepare(code).code or code
    for shape in ((3, 32, 32), LARGE):
        verdict, sketched = sandbox.sketch(code, shape=shape, classes=10)
        if sketched is not None:
            assert sketched.graph.profile is not None
            return structure_class(sketched.graph.profile)
    raise AssertionError(verdict)


def self_contained(code: str) -> str:
    """With torchvision's layers in the file, and values for hyperparameters."""
    imports = re.findall(r"^from torchvision\S* import (.*)$", code, re.M)
    if imports:
        renamed = re.findall(r"(\w+) as (\w+)", " ".join(imports))
        code = re.sub(r"^from torchvision.*$", "", code, flags=re.M)
        parts = [PARTS.read_text(), *(f"{new} = {old}" for old, new in renamed)]
        code = "\n".join([*parts, code])
    names = "|".join(SETTINGS)
    return re.sub(rf"prm\[['\"]({names})['\"]\]", lambda found: str(SETTINGS[found[1]]), code)


@pytest.mark.parametrize("label", LABELS)
def test_a_class_is_what_the_code_says(sandbox: Sandbox, known: dict[str, str], label: str) -> None:
    names = [name for name in known if name == label or name.startswith(f"{label}-")]
    code = known[min(names, key=len)]
    assert class_of(sandbox, code) == LABELS[label]


def test_the_labels_are_of_many_architectures() -> None:
    assert len({name.split("-")[0] for name in NAMED}) >= 30
    assert len(DRAWN) + len(STRUCTURED) >= 80
    structures = {s for found in LABELS.values() for s in found.split("+")}
    assert structures == {*STRUCTURES, PLAIN}
