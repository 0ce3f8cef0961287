"""Which emotion head a training's options ask for."""

import argparse

import pytest
from backbone_common import small_encoder

from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.emotion import EmotionHead, ProjectorHead
from espnet_adaltm.training.task import build_emotion_head, emotion_head_options

DEFAULTS = {"hidden": 256, "dropout": 0.1, "pooling": "mean"}


def options(pooling="mean", **head_conf):
    return argparse.Namespace(head_conf=head_conf, pooling=pooling)


def test_the_default_is_not_named_so_that_old_descriptions_stay_the_same():
    assert emotion_head_options(options(), choose_kind=True) == DEFAULTS
    assert emotion_head_options(options(hidden=8)) == {**DEFAULTS, "hidden": 8}


def test_the_kind_is_built():
    encoder, labels = small_encoder(), Labels(("a", "b"))
    assert isinstance(build_emotion_head(options(), encoder, labels), EmotionHead)
    head = build_emotion_head(options(kind="projector", hidden=9), encoder, labels)
    assert isinstance(head, ProjectorHead)
    assert head.projector.out_features == 9
    assert head.layer_weights.shape == (encoder.num_layers + 1,)
    described = emotion_head_options(options(kind="projector", hidden=9), choose_kind=True)
    assert described == {**DEFAULTS, "kind": "projector", "hidden": 9}


def test_mistakes_are_named():
    with pytest.raises(UserError, match="unknown key 'kind'"):
        emotion_head_options(options(kind="projector"))
    with pytest.raises(UserError, match="kind=linear: choose one of convolutions, projector"):
        emotion_head_options(options(kind="linear"), choose_kind=True)
    with pytest.raises(UserError, match="kind=projector takes --pooling mean, not attentive"):
        emotion_head_options(options("attentive", kind="projector"), choose_kind=True)
