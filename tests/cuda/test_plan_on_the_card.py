"""`plan` for this machine: the memory that other programs use, and the card that would be used."""

import json
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
GIB = 2**30


def plan(card, **options):
    done = card.command(["plan", RECIPE, "--json"], **options)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("capability", "dtype", "fast_path"), [((8, 6), "bfloat16", True), ((7, 5), "float16", False)])
def test_plan_knows_the_card_and_what_others_use(card, capability, dtype, fast_path):
    estimate = plan(card, capability=capability, memory=12 * GIB, used_by_others=3 * GIB)
    device, chosen = estimate["device"], estimate["chosen"]
    assert (device["memory"], device["context"], device["at_hand"]) == (12 * GIB, 3 * GIB, True)
    assert (chosen["dtype"], chosen["fast_path"]) == (dtype, fast_path)
    assert estimate["merge_check"]["free"] == 9 * GIB
    assert (estimate["verdict"], estimate["refusal"]) == ("fits", None)


def test_full_card_does_not_fit(card):
    estimate = plan(card, memory=12 * GIB, used_by_others=12 * GIB - 2**25)
    assert estimate["verdict"] != "fits"


def test_plans_for_the_card_with_more_free_memory(card):
    estimate = plan(card, cards=2, memory=[8 * GIB, 12 * GIB], used_by_others=[GIB, 10 * GIB], nvml={})
    assert (estimate["device"]["memory"], estimate["device"]["context"]) == (8 * GIB, GIB)
    estimate = plan(card, cards=2, memory=[8 * GIB, 12 * GIB], used_by_others=[GIB, GIB], nvml={})
    assert estimate["device"]["memory"] == 12 * GIB


def test_card_without_kernels_stops_the_plan_as_it_stops_the_run(card):
    done = card.command(["plan", RECIPE], capability=(6, 1))
    assert (done.exit_code, done.stdout) == (8, "")
    assert "has no kernels" in done.stderr
