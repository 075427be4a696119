"""Check files of `launch/` with the tools' own packages, which are not among lora_chat's: python check_schemas.py

Reads a JSON object `{kind: text}` from stdin and prints a JSON object `{kind: error or null}`. Needs skypilot,
kubeflow-trainer-api and kubernetes-validate.
"""

import json
import os
import sys
import tempfile
from pathlib import Path


def check_skypilot(text: str) -> None:
    # SkyPilot downloads its list of accelerators unless there is one.
    catalog = Path(os.environ["HOME"], ".sky/catalogs/v8/common/accelerators.csv")
    catalog.parent.mkdir(parents=True)
    catalog.write_text('AcceleratorName,Clouds\nA100,"[]"\n')
    import sky
    import yaml

    task = sky.Task.from_yaml_config(yaml.safe_load(text))
    task.validate()


def check_skypilot_volume(text: str) -> None:
    import yaml
    from sky.utils import common_utils, schemas

    common_utils.validate_schema(yaml.safe_load(text), schemas.get_volume_schema(), "")


def check_kubernetes(text: str) -> None:
    import kubernetes_validate
    import yaml
    from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

    volume, job = yaml.safe_load_all(text)
    kubernetes_validate.validate(volume, "1.33", strict=True)
    read = TrainerV1alpha1TrainJob.from_dict(job).to_dict()
    if read != job:  # the class ignores fields that it does not know
        raise ValueError(f"unknown field: {json.dumps(job)} was read as {json.dumps(read)}")


CHECKS = {"kubernetes": check_kubernetes, "skypilot": check_skypilot, "skypilot-volume": check_skypilot_volume}


def main() -> None:
    errors = {}
    output = os.dup(1)
    os.dup2(2, 1)  # SkyPilot prints messages
    for kind, text in json.load(sys.stdin).items():
        with tempfile.TemporaryDirectory() as home:
            os.environ |= {"HOME": home, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
            try:
                CHECKS[kind](text)
                errors[kind] = None
            except Exception as error:
                errors[kind] = f"{type(error).__name__}: {error}"
    os.write(output, json.dumps(errors).encode())


if __name__ == "__main__":
    main()
