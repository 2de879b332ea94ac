from pathlib import Path

import pytest

from small_inputs import MODEL_CONFIG, save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), **MODEL_CONFIG)
