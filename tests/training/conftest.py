"""One corpus for all trainings of this folder."""

import pytest
from training_common import make_corpus, make_experts


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Root of a made-up corpus with tokens, labels, base and task vectors."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def experts(corpus, tmp_path_factory):
    """Folder with trained experts, ``asr`` and ``ser``, and their ``task_vectors``."""
    return make_experts(corpus, tmp_path_factory.mktemp("experts"))
