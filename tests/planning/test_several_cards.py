"""Runs on several cards: shares of steps, communication, memory, and when a second card pays off."""

from dataclasses import replace

import pytest
from test_settings_search import DATA, LLAMA_8B, lengths, plan_of

from lora_chat.data.lengths import DataLengths
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.shape import read_shape
from lora_chat.planning.card_advice import format_advice, format_card_table
from lora_chat.planning.card_links import CPU_LINK, find_card_link, make_pcie_link
from lora_chat.planning.card_table import list_layouts, make_card_table
from lora_chat.planning.choose_sharding import choose_sharding
from lora_chat.planning.estimate import make_estimate
from lora_chat.planning.gpu_specs import find_gpu_spec, load_gpu_specs, target_from_gpu_spec, target_from_memory_size
from lora_chat.planning.process_layout import ONE_PROCESS, ProcessLayout
from lora_chat.planning.process_time import estimate_communication
from lora_chat.planning.settings_search import Candidate, PlanningProblem, choose_plan
from lora_chat.planning.step_shares import divide_steps, largest_data_share
from lora_chat.planning.weight_memory import MemoryConfig, layer_value_bytes, weight_bytes
from lora_chat.planning.workload import compute_workload, select_largest_rows
from lora_chat.processes.shares import share_by_size

PCIE = make_pcie_link("PCIe 4.0 x16")


def problem_of(gpu="RTX 4090", data=DATA, **layout):
    return PlanningProblem(LLAMA_8B, data, target_from_gpu_spec(find_gpu_spec(gpu)), None, ProcessLayout(**layout))


def estimate_of(plan, problem):
    chosen = choose_plan(plan, problem, problem.target.limit)
    one = problem.layout.count == 1
    return make_estimate(chosen, problem, base="8B", origin="x", weight_bytes=None, download_bytes=None, suggest=one)


def table_of(plan, cards=4, gpu="RTX 4090", data=DATA):
    target = target_from_gpu_spec(find_gpu_spec(gpu))
    problems = [PlanningProblem(LLAMA_8B, data, target, None, each) for each in list_layouts(cards, PCIE)]
    return make_card_table(PCIE, 1, [estimate_of(plan, problem) for problem in problems])


@pytest.mark.parametrize("fast", [True, False])
def test_one_card_has_the_estimate_of_a_plan_without_cards(fast):
    plan = plan_of(fast_path=fast)
    alone = estimate_of(plan, PlanningProblem(LLAMA_8B, DATA, target_from_gpu_spec(find_gpu_spec("RTX 4090"))))
    row = table_of(plan, 1).rows[0]
    assert replace(row.estimate, layout=alone.layout) == alone
    assert row.speed_up == 1
    assert "processes" not in alone.as_dict()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("batch", [1, 5, 16, 200])
def test_the_largest_share_of_a_step_is_between_an_equal_part_and_all_of_it(fast, batch):
    plan = plan_of(fast_path=fast, effective_batch_size=batch).training
    whole = compute_workload(DATA, plan)
    before = whole.step_positions
    for count in (2, 3, 4, 7):
        own = divide_steps(DATA, plan, count).apply_to(whole, plan)
        # Without the fast path, fewer rows also need less padding.
        assert whole.step_positions / count * (0.999 if fast else 0.9) <= own.step_positions <= before * 1.001
        assert 1 <= own.micro_batches <= max(1, whole.micro_batches * 1.001)
        assert (own.steps, own.supervised_tokens) == (whole.steps, whole.supervised_tokens)
        before = own.step_positions if fast else before
    if batch == 1:
        assert own.step_positions == pytest.approx(whole.step_positions)


def test_the_longest_dialogue_of_a_step_bounds_its_time():
    rows = lengths(*[900, 20, 20, 20] * 10)
    data, plan = DataLengths(rows, rows, (), 8), plan_of(fast_path=True, effective_batch_size=40).training
    own = [divide_steps(data, plan, count).apply_to(compute_workload(data, plan), plan) for count in (10, 40)]
    assert own[0].step_tokens == pytest.approx(960, rel=0.01)
    assert own[1].step_tokens == pytest.approx(900, rel=0.01)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("processes", [2, 3, 5, 16, 30])
def test_no_share_of_a_step_exceeds_the_planned_micro_batch(fast, processes):
    """Training tries the planned micro-batch before its first step."""
    import random

    generator = random.Random(processes)
    plan = plan_of(fast_path=fast, micro_batch_size=16, effective_batch_size=16).training
    plan = plan.model_copy(update={"micro_batch_tokens": 10**6 if fast else None})
    for _ in range(60):
        rows = [generator.choice((5, 50, 400, 1000)) + generator.randrange(9) for _ in range(16)]
        picked = select_largest_rows(rows, plan, 0, processes=processes)
        share = max(share_by_size(rows, processes), key=lambda share: sum(rows[i] for i in share))
        largest = max(rows)
        if fast:  # the greedy choice of rows may leave less than a row of the limit unused
            assert sum(rows[i] for i in share) <= sum(rows[i] for i in picked) + largest
        else:
            assert max(map(len, share_by_size(rows, processes))) <= max(1, len(picked))
    assert select_largest_rows(rows, plan, 0, processes=1) == sorted(range(16), key=lambda i: -rows[i])


def test_rows_and_prompts_are_shared_too():
    data = replace(DATA, prompt_tokens=(5, 9, 7, 1, 3), recital_replies=7, validation=lengths(*range(10, 60)))
    share = largest_data_share(data, 2)
    assert share.prompt_tokens == (9, 5, 1)
    assert share.recital_replies == 7  # the first process does it without the others
    assert int(share.validation.tokens.sum()) == pytest.approx(data.validation.tokens.sum() / 2, abs=30)
    assert largest_data_share(data, 1) is data
    many = lengths(*[20] * 20_001)
    assert len(largest_data_share(replace(data, validation=many), 2).validation.tokens) == 10_001
    empty = lengths()
    assert len(largest_data_share(replace(data, validation=empty), 3).validation.tokens) == 0


def test_all_reduce_takes_the_time_of_a_ring():
    size, count = 175_000_000, 4
    transfer = 2 * (count - 1) / count * size / PCIE.bandwidth
    assert PCIE.all_reduce_seconds(size, count) == pytest.approx(transfer + PCIE.start + 6 * PCIE.hop)
    assert PCIE.all_reduce_seconds(size, 1) == 0
    assert PCIE.all_gather_seconds(size, 2) == pytest.approx(size / 2 / PCIE.bandwidth, rel=0.01)
    assert PCIE.bandwidth == 24e9


@pytest.mark.parametrize(
    ("gpu", "name", "bandwidth"),
    [
        ("RTX 4090", "PCIe 4.0 x16", 24e9),
        ("RTX 4060", "PCIe 4.0 x8", 12e9),
        ("T4", "PCIe 3.0 x16", 12e9),
        ("RTX 5090", "PCIe 5.0 x16", 48e9),
        ("A100 SXM4 80GB", "NVLink (12 links)", 240e9),
        ("H100 SXM5 80GB", "NVLink (18 links)", 370.8e9),
    ],
)
def test_the_link_of_a_card_is_known(gpu, name, bandwidth):
    link = find_card_link(target_from_gpu_spec(find_gpu_spec(gpu)))
    assert (link.name, link.bandwidth) == (name, pytest.approx(bandwidth))
    assert "NCCL" in link.source


def test_every_card_has_a_link():
    assert all(make_pcie_link(spec.bus).bandwidth >= 6e9 for spec in load_gpu_specs())
    with_nvlink = [spec for spec in load_gpu_specs() if spec.nvlinks]
    assert all(find_card_link(target_from_gpu_spec(spec)).bandwidth >= 240e9 for spec in with_nvlink)
    assert len(with_nvlink) == 4
    assert find_card_link(target_from_memory_size(2**34)).name == "PCIe 4.0 x16"


def test_the_sum_has_four_bytes_for_each_trained_weight(cache_home):
    """Counted on a model with a real adapter."""
    from lora_chat.config.recipe import AdapterSection, BaseSection
    from lora_chat.models.base_config import find_base_config
    from lora_chat.models.base_model import find_base, load_meta_model

    section = BaseSection(name="tiny-random")
    shape = read_shape(find_base_config(section).config, "tiny-random")
    model = attach_adapter(load_meta_model(find_base(section)), AdapterSection(rank=16))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    target = target_from_gpu_spec(find_gpu_spec("RTX 4090"))
    candidate = Candidate(plan_of(), PlanningProblem(shape, DATA, target, None, ProcessLayout(2, PCIE)))
    assert estimate_communication(candidate).gradient_bytes == 4 * trained
    two, one = (
        next(phase for phase in each.phases if phase.name == "train")
        for each in (candidate, Candidate(plan_of(), candidate.problem.of_one_process))
    )
    assert two.workspace - one.workspace == 4 * trained  # the buffer of the sum


@pytest.mark.parametrize("mode", ["4bit", "none"])
def test_a_sharded_base_takes_a_part_of_the_layers_and_two_whole_ones(mode):
    whole = MemoryConfig(mode, 16)
    layers = layer_value_bytes(LLAMA_8B, whole)
    outside = weight_bytes(LLAMA_8B, whole) - layers
    for count in (2, 8):
        sharded = weight_bytes(LLAMA_8B, replace(whole, processes=count, sharded=True))
        assert sharded == pytest.approx(outside + layers / count + 2 * layers / LLAMA_8B.num_layers, abs=2)


def test_settings_do_not_depend_on_the_number_of_cards():
    """So a run can be continued with another number of them."""
    for gpu in ("RTX 3060 12GB", "RTX 4090"):
        plans = [
            choose_plan(plan_of(fast_path=True), problem, problem.target.limit).training
            for problem in (problem_of(gpu, count=count, link=PCIE) for count in (1, 2, 5))
        ]
        kept = [plan.model_dump(exclude={"cached_layers"}) for plan in plans]
        assert kept[0] == kept[1] == kept[2]


def test_a_long_run_gains_and_a_short_one_does_not():
    long, short = (table_of(plan_of(fast_path=True, max_steps=steps), 3) for steps in (100_000, 2))
    assert 1.5 < long.find(2).speed_up < 2
    assert long.find(2).speed_up < long.find(3).speed_up < 3
    assert long.recommended.cards == 3
    assert format_advice(long).startswith("A second card pays off: the run is 1.")
    assert short.recommended.cards == 1
    assert "The run is too short" in format_advice(short)
    assert "this run has 2." in format_advice(short)
    steps = int(format_advice(short).split("from about ")[1].split(" steps")[0].replace(",", ""))
    at, below = (table_of(plan_of(fast_path=True, max_steps=n), 2).find(2).speed_up for n in (steps + 50, steps // 2))
    assert below < 1.25 <= at * 1.02


def test_one_dialogue_in_a_step_leaves_the_second_card_idle():
    table = table_of(plan_of(fast_path=True, effective_batch_size=1, max_steps=100_000), 2)
    assert table.find(2).speed_up <= 1.05
    assert "single dialogue" in format_advice(table)
    assert table.recommended.cards == 1


def test_a_base_too_large_for_a_card_is_sharded():
    table = table_of(plan_of("none", fast_path=True, max_steps=1000), 3, "RTX 3080 12GB")
    assert not table.rows[0].fits
    assert table.recommended.sharded
    assert "with the base sharded" in format_advice(table)
    text = format_card_table(table, "sft r.yaml")
    cards = table.recommended.cards
    assert f"lora-chat sft r.yaml --set base.shard=true --processes {cards}" in text
    assert f"torchrun --nproc-per-node {cards} -m lora_chat sft r.yaml --set base.shard=true" in text
    row = table.find(3, sharded=True)
    assert row.estimate.communication.gather > row.estimate.communication.step
    assert row.estimate.plan.training.cached_layers == 0
    tiny = table_of(plan_of("none", fast_path=True), 2, "RTX 3050 6GB")
    assert tiny.recommended is None
    assert "too small, too" in format_advice(tiny)


def test_many_cards_are_listed_by_doubling():
    counts = [layout.count for layout in list_layouts(40, PCIE) if not layout.sharded]
    assert counts == [*range(1, 9), 16, 32, 40]
    assert [layout.count for layout in list_layouts(1, PCIE)] == [1]
    assert ProcessLayout() == ONE_PROCESS
    assert ONE_PROCESS.link is CPU_LINK


@pytest.mark.parametrize(
    ("mode", "gpu", "count", "sharded"),
    [
        ("4bit", "RTX 3060 12GB", 2, False),  # the whole base fits
        ("none", "RTX 3080 12GB", 3, True),
        ("none", "RTX 3080 12GB", 1, False),
        ("none", "RTX 3050 6GB", 2, False),  # neither fits
        ("8bit", "RTX 3050 6GB", 8, False),  # cannot be sharded
    ],
)
def test_a_base_is_sharded_only_if_it_fits_only_so(mode, gpu, count, sharded):
    assert choose_sharding(plan_of(mode, fast_path=True), problem_of(gpu, count=count, link=PCIE)) == sharded


def test_processes_on_a_cpu_do_not_shard():
    problem = problem_of("RTX 3080 12GB", count=3)
    problem = replace(problem, target=replace(problem.target, device="cpu"))
    assert not choose_sharding(plan_of("none", fast_path=True), problem)
