"""Parcels, runs and folders for a server of one small base, right ones and wrong ones."""

import json
import shutil
from pathlib import Path

import pytest

from lora_chat.export.parity.reference_outputs import make_reference
from lora_chat.models.adapter import validate_adapter_config
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import TrustOptions, open_adapter
from lora_chat.sharing.build import build_members
from lora_chat.sharing.collect import make_base_receipt
from lora_chat.sharing.container import pack_members
from lora_chat.sharing.receipt import Receipt
from lora_chat.sharing.tensor_checks import check_tensors, read_tensors
from tests.sharing.forging import facts

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-of-version-2" / "smoke-1"


class Things:
    """Adapters, parcels and runs in one folder."""

    def __init__(self, folder, base, make_adapter):
        self.folder, self.base, self._make_adapter = folder, str(base), make_adapter
        self.trust = TrustOptions(base=self.base)

    def adapter(self, name, base=None, **changed):
        """Return the folder of an adapter that lora_chat wrote."""
        folder = self.folder / name
        if not folder.exists():
            self._make_adapter(base or self.base, folder, **changed)
        return folder

    def parcel(self, name, adapter=None, *, reference="own", base=None, mode="none", template=None, to=None):
        """Return a parcel of an adapter, with a reference of its own, of another parcel, or with none."""
        adapter = adapter or self.adapter(f"adapter-of-{name}", base)
        path = (to or self.folder) / f"{name}.lorachat"
        stored = read_adapter(adapter)
        settings = validate_adapter_config(stored)
        weights = (adapter / "adapter_model.safetensors").read_bytes()
        fields = facts(
            name=name,
            base=make_base_receipt(stored.identity).model_dump(mode="json"),
            recipe={},
            precision={"mode": mode, "double_quantization": True, "dtype": "float32"},
            adapter=settings.to_section().model_dump(mode="json"),
            parameters=check_tensors(read_tensors(weights), settings),
            chat_template=template,
        )
        self._write(path, fields, weights)
        if reference == "own":
            reference = self.measure(path)
        if reference is not None:
            self._write(path, fields | {"version": 5, "reference": reference}, weights)
        return path

    def measure(self, path):
        """Return the reference of a parcel as JSON."""
        opened = open_adapter(str(path), TrustOptions(base=self.base, accept_template=True))
        bound = opened.adapter
        stop_ids = read_stop_ids(bound.base, bound.tokenizer)
        model = bound.load(opened.precision).eval()
        reference = make_reference(model, bound.tokenizer, stop_ids, opened.system, opened.precision)
        return reference.model_dump(mode="json")

    def run(self, name, adapter):
        """Return a run folder with held-out dialogues and a copy of an adapter."""
        run = self.folder / name
        shutil.copytree(OLD_RUN, run, ignore=shutil.ignore_patterns("adapter", "checkpoints", "origin.json"))
        shutil.copytree(adapter, run / "adapter")
        return run

    def _write(self, path, fields, weights):
        members = build_members(Receipt.model_validate_json(json.dumps(fields)), weights)
        path.write_bytes(b"".join(bytes(piece) for piece in pack_members(members)))


@pytest.fixture(scope="module")
def things(random_base, make_adapter, tmp_path_factory):
    return Things(tmp_path_factory.mktemp("things"), random_base("llama", 8.0), make_adapter)
