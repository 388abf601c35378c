"""Structure classes of named architectures of LEMUR, beside labels read off their code."""

from __future__ import annotations

import pytest

from archloop.config import SandboxConfig
from archloop.corpus.seeds.lemur import LemurSource
from archloop.corpus.seeds.prepare import prepare
from archloop.novelty.structure import structure_class
from archloop.sandbox.host.client import Sandbox

pytestmark = pytest.mark.slow
LARGE = (3, 224, 224)
"""For networks that do not take smaller images."""

LABELS = {
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
    # The time embedding that is added does not depend on the image.
    "Diffuser": "plain",
    # A mean over stacked columns.
    "FractalNet": "skip",
    # Pooled maps, scaled up and joined to what they were pooled from.
    "ICNet": "join",
    "ICNet-67ac663e": "join",
    "ICNet-8020fbd0": "join",
    "ICNet-e1aa9d01": "join",
    # Inverted bottlenecks.
    "MNASNet": "skip+depthwise",
    "MNASNet-3b1e639a": "skip+depthwise",
    "MNASNet-7201935e": "skip+depthwise",
    # Outputs of experts times a softmax of the router, added up.
    "MoE-0707": "skip+gate",
    "MoE-0707-DenseNet": "skip+gate",
    "MoEv2": "skip+gate",
    "VGG": "plain",
    "VGG-485c0cc2": "plain",
}


def test_classes_agree_with_what_the_code_says() -> None:
    assert len(LABELS) >= 60
    known = {n.name: n.code for n in LemurSource(None).networks()}
    found = {}
    with Sandbox(SandboxConfig(build_seconds=120)) as sandbox:
        for label in LABELS:
            names = [name for name in known if name == label or name.startswith(f"{label}-")]
            code = prepare(known[min(names, key=len)]).code
            assert code is not None, label
            for shape in ((3, 32, 32), LARGE):
                verdict, sketched = sandbox.sketch(code, shape=shape, classes=10)
                if sketched is not None:
                    break
            assert sketched is not None and sketched.graph.profile is not None, (label, verdict)
            found[label] = structure_class(sketched.graph.profile)
    assert found == LABELS
