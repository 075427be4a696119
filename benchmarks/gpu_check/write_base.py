"""Write the folder of a base: `write_base.py FOLDER BASE CHANGES [--weights]`, BASE empty for a config of its own.

Orchestrating parts start it as a process, because they import no libraries themselves.
"""

import argparse
import json
from pathlib import Path

from random_models import make_config, write_base_folder

from lora_chat.pipeline.machine_benchmark_worker import write_random_model


def main() -> None:
    """Write config and tokenizer, and random weights if asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("base")
    parser.add_argument("changes", type=json.loads)
    parser.add_argument("--weights", action="store_true")
    options = parser.parse_args()
    config = make_config(options.base, options.changes)
    write_base_folder(options.folder, config)
    if options.weights:
        write_random_model(config, config["num_hidden_layers"], options.folder)


if __name__ == "__main__":
    main()
