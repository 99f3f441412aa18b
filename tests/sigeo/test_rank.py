"""Ranking: equal networks once, the same result by every route, every protocol."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError, data, proxies, score, spaces
from sigeo.proxies import OnModel, Outcome, Proxy
from sigeo.scoring.export import as_json, strict_dumps, write_scores
from sigeo.scoring.networks import Networks, Protocol
from sigeo.scoring.rank import rank
from sigeo.store import RunStore
from sigeo.supernet import WarmUp, load_checkpoint, save_checkpoint, warm_up_alone
from sigeo.tables.ranking import read_scores
from tests.sigeo.test_nasbench201 import published

DIGITS = data.load("digits")


def space():
    return spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=4, cells=1)


def protocol(names="sigeo,zico,params,flops", **changes):
    chosen = tuple(proxies.get(name) for name in names.split(","))
    return Protocol(chosen, **{"batches": 4, "batch_size": 16, **changes})


def ranked(archs, folder, **changes):
    networks = Networks(space(), DIGITS, protocol(**changes), folder=folder)
    with RunStore(folder / "run.sqlite", networks.settings()) as store:
        return rank(networks, archs, store)


def cells(count=12, seed=0):
    return spaces.distinct(space(), count, random.Random(seed))


def scores_of(rows):
    return {row.arch: row.scores for row in rows}


def test_the_pipeline_gives_what_the_plain_route_gives(tmp_path):
    archs = cells(16)
    got = scores_of(
        ranked(archs, tmp_path, names="sigeo,zico,snip,synflow,l2_norm,params", deduplicate=False)
    )
    order = DIGITS.order(0)[:64].view(4, 16)
    batches = [DIGITS.batch(places) for places in order]
    for cell in archs:
        network = published(space().build(cell, seed=0))
        plain = score(
            network,
            batches,
            ["sigeo", "zico", "snip", "synflow", "l2_norm", "params"],
            memory_format="preserve",
        )
        for name, value in got[str(cell)].items():
            assert value == pytest.approx(plain[name].value, rel=1e-3), (name, str(cell))


def test_proxies_that_count_rectifiers_see_the_published_networks(tmp_path):
    names = ["naswot", "swap"]
    batch = DIGITS.batch(DIGITS.order(0)[:16])
    for row in ranked(same_function(1), tmp_path, names="naswot,swap"):
        network = published(space().build(space().parse(row.arch), seed=0))
        plain = score(network, [batch], names, memory_format="preserve")
        assert not any("scored once" in note for note in row.notes)
        for name, value in row.scores.items():
            assert value == pytest.approx(plain[name].value, rel=1e-2), (name, row.arch)


def same_function(count=3):
    """Architectures of which some are the same network."""
    groups = {}
    for index in range(space().size):
        cell = space().at(index)
        groups.setdefault(space().representative(cell), []).append(cell)
    several = [group for group in groups.values() if 3 <= len(group) <= 6]
    return [cell for group in several[:count] for cell in group]


def test_equal_functions_share_one_score_but_not_their_size(tmp_path, monkeypatch):
    archs = same_function()
    scored = []
    original = Networks.score

    def counted(self, arch, chosen):
        if not any(p.whole_network for p in chosen):
            scored.append(arch)
        return original(self, arch, chosen)

    monkeypatch.setattr(Networks, "score", counted)
    rows = ranked(archs, tmp_path)
    assert len(scored) == len(set(scored)) == 3 < len(archs)
    assert len({row.scores["sigeo"] for row in rows}) == 3
    assert all(
        row.scores["params"] == space().cost(space().parse(row.arch)).parameters for row in rows
    )
    duplicates = [row for row in rows if any("scored once" in note for note in row.notes)]
    assert len(duplicates) == len(archs) - 3 and all(row.seconds == 0 for row in duplicates)
    scored.clear()
    ranked(archs, tmp_path / ".." / tmp_path.name, deduplicate=False)
    assert len(scored) == len(archs)


def test_the_score_of_a_function_does_not_depend_on_its_architecture(tmp_path):
    archs = same_function(1)
    first = ranked(archs[:1], tmp_path)[0].scores["sigeo"]
    (tmp_path / "b").mkdir()
    assert ranked(archs[1:2], tmp_path / "b")[0].scores["sigeo"] == first


def test_shared_weights_are_shared_only_by_equal_paths(tmp_path):
    archs = same_function()
    rows = ranked(archs, tmp_path, init="supernet", warmup=WarmUp(64, batch_size=16))
    live = {space().pruned(cell) for cell in archs}
    assert 3 < len({row.scores["zico"] for row in rows}) <= len(live)
    assert all(sum("scored once" in note for note in row.notes) <= 1 for row in rows)
    shared = [row for row in rows if any("scored once" in note for note in row.notes)]
    assert len(shared) == len(archs) - len(live)


def test_architectures_may_come_one_by_one(tmp_path):
    archs = cells(3)
    assert ranked(iter(archs), tmp_path) == ranked(archs, tmp_path)


def test_a_second_run_scores_nothing(tmp_path, monkeypatch):
    archs = cells()
    first = ranked(archs, tmp_path)
    monkeypatch.setattr(Networks, "score", lambda *_: pytest.fail("scored twice"))
    assert ranked(archs, tmp_path) == first
    assert ranked(archs[:5], tmp_path) == [
        row for row in first if space().parse(row.arch) in archs[:5]
    ]


def test_a_further_proxy_costs_only_itself(tmp_path, monkeypatch):
    archs = cells(4)
    ranked(archs, tmp_path, names="zico,params")
    asked = []
    original = Networks.score

    def noted(self, arch, chosen):
        asked.extend(p.name for p in chosen)
        return original(self, arch, chosen)

    monkeypatch.setattr(Networks, "score", noted)
    rows = ranked(archs, tmp_path, names="zico,snip,params")
    assert set(asked) == {"snip"} and all(row.scores["snip"] is not None for row in rows)


def test_lambdas_are_part_of_the_proxy(tmp_path):
    archs = cells(3)
    networks = [
        Networks(
            space(),
            DIGITS,
            Protocol((proxies.get("sigeo", lambdas=lambdas),), batches=2, batch_size=16),
        )
        for lambdas in ((1, 1, 0), (1, 50, 1))
    ]
    rows = []
    for n in networks:
        with RunStore(tmp_path / "s.sqlite", n.settings()) as store:
            rows.append(rank(n, archs, store))
    by_arch = {row.arch: row for row in rows[1]}
    for row in rows[0]:
        other, terms = by_arch[row.arch], row.terms["sigeo"]
        assert terms == other.terms["sigeo"]
        assert other.scores["sigeo"] == pytest.approx(
            terms["zico"] + 50 * terms["fr"] - terms["loss"]
        )
        assert row.options["sigeo"]["lambdas"] == [1, 1, 0] and other.options["sigeo"][
            "lambdas"
        ] == [1, 50, 1]


def test_candidates_warmed_alone_equal_the_protocol_spelled_out(tmp_path):
    archs = cells(3, seed=5)
    config = WarmUp.published(64, 2)
    got = scores_of(
        ranked(
            archs, tmp_path, names="zico,snip", init="candidate", warmup=config, deduplicate=False
        )
    )
    order = DIGITS.order(0)
    batches = [DIGITS.batch(p) for p in order[:64].view(4, 16)]
    for cell in archs:
        network = space().build(cell, seed=0).train()
        for step in range(config.steps):
            x, y = DIGITS.batch(config.indices(order, step, 0))
            F.cross_entropy(network(x), y).backward()
            with torch.no_grad():
                for p in network.parameters():
                    p -= p.grad if p.grad is not None else 0
                    p.grad = None
        plain = score(network, batches, ["zico", "snip"], memory_format="preserve")
        for name in ("zico", "snip"):
            assert got[str(cell)][name] == pytest.approx(plain[name].value, rel=5e-2)


def test_scoring_leaves_the_shared_weights_alone(tmp_path):
    for changes in ({}, {"init": "candidate", "warmup": WarmUp.published(64, 1)}):
        networks = Networks(space(), DIGITS, protocol(**changes))
        before = {k: v.clone() for k, v in networks._module.state_dict().items()}
        for cell in cells(4):
            networks.score(cell, networks.protocol.proxies[:2])
        assert all(torch.equal(v, before[k]) for k, v in networks._module.state_dict().items())


def test_a_supernet_is_warmed_once_and_can_be_loaded(tmp_path):
    changes = {"init": "supernet", "warmup": WarmUp(64, batch_size=16)}
    rows = ranked(cells(4), tmp_path, **changes)
    (checkpoint,) = tmp_path.glob("supernet-*.safetensors")
    (tmp_path / "b").mkdir()
    loaded = ranked(cells(4), tmp_path / "b", init="supernet", checkpoint=checkpoint)
    assert scores_of(loaded) == scores_of(rows)
    other = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=5, cells=1)
    with pytest.raises(InputError, match=r"made for other networks \(channels: there 4, here "):
        Networks(other, DIGITS, protocol(init="supernet", checkpoint=checkpoint))


def test_a_network_that_is_not_finite_ranks_last_and_strict_json_holds_null(tmp_path, monkeypatch):
    archs = cells(4)
    bad = space().pruned(space().representative(archs[1]))

    def odd(model: nn.Module, inputs: object) -> Outcome:
        value = float("nan") if model.blocks[0].cell == bad else 1.0
        return Outcome(value, {"part": value})

    proxy = Proxy("odd", OnModel(odd), source="here", cost="free")
    networks = Networks(
        space(), DIGITS, Protocol((proxy, proxies.get("zico")), batches=2, batch_size=16)
    )
    with RunStore(tmp_path / "run.sqlite", networks.settings()) as store:
        rows = rank(networks, archs, store)
    last = rows[-1]
    assert last.arch == str(archs[1]) and last.scores["odd"] is None and not last.finite
    assert "odd: odd is nan" in last.notes and all(row.finite for row in rows[:-1])
    document = as_json(networks, rows)
    text = strict_dumps(document)
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert (
        parsed["rows"][-1]["scores"]["odd"] is None
        and parsed["rows"][-1]["terms"]["odd"]["part"] is None
    )
    write_scores(tmp_path / "scores.parquet", document, ["odd", "zico"])
    head, table = read_scores(tmp_path / "scores.parquet")
    assert head["proxies"] == ["odd", "zico"] and table["odd"].to_pylist()[-1] is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_dumps({"x": float("nan")})


def test_an_unfinished_checkpoint_and_other_weights_are_told_apart(tmp_path):
    changes = {"init": "supernet", "warmup": WarmUp(64, batch_size=16)}
    ranked(cells(2), tmp_path, **changes)
    (path,) = tmp_path.glob("supernet-*.safetensors")
    whole = Networks(space(), DIGITS, protocol(init="supernet", checkpoint=path))
    state, settings = load_checkpoint(path)
    weights = {name: w + 0.01 for name, w in state.weights.items()}
    save_checkpoint(path, replace(state, weights=weights), settings)
    other = Networks(space(), DIGITS, protocol(init="supernet", checkpoint=path))
    assert whole.settings() != other.settings()
    save_checkpoint(path, replace(state, step=state.step - 1), settings)
    with pytest.raises(InputError, match=r"stands at step 3 of 4"):
        Networks(space(), DIGITS, protocol(init="supernet", checkpoint=path))


def test_a_proxy_of_initial_weights_refuses_warmed_ones():
    with pytest.raises(InputError, match="synflow needs weights as drawn, got warmed-up ones"):
        Networks(
            space(),
            DIGITS,
            Protocol((proxies.get("synflow"),), "candidate", WarmUp(64), batch_size=16),
        )


def test_bad_protocols():
    with pytest.raises(
        InputError, match="4 batches of 1000 need 4000 training images, digits has 1437"
    ):
        Networks(space(), DIGITS, protocol(batches=4, batch_size=1000))
    with pytest.raises(InputError, match="device: must be cpu, cuda or cuda:N, got 'tpu9'"):
        Networks(space(), DIGITS, protocol(device="tpu9"))
    with pytest.raises(InputError, match="sigeo needs at least 2 batches, got 1"):
        Networks(space(), DIGITS, protocol(batches=1))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="torch finds 0 CUDA devices"):
            Networks(space(), DIGITS, protocol(device="cuda"))


def test_warm_up_alone_draws_dropout_from_its_own_stream():
    source, weights = Networks(space(), DIGITS, protocol())._source, []
    for seed in (1, 2):
        network = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10)
        )
        torch.nn.init.zeros_(network[2].weight), torch.nn.init.zeros_(network[2].bias)
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        warm_up_alone(network, WarmUp(256), source)
        assert torch.equal(before, torch.random.get_rng_state())
        weights.append(network[2].weight.detach())
    assert weights[0].abs().sum() > 0 and torch.equal(*weights)


def test_warm_up_alone_is_deterministic():
    networks = [Networks(space(), DIGITS, protocol()) for _ in range(2)]
    states = []
    for n in networks:
        module = n._supernet.subnet(space().at(9558))
        warm_up_alone(module, WarmUp.published(64, 1), n._source)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_many_at_once_gives_the_same_scores_and_keeps_every_group(tmp_path, monkeypatch):
    archs = [*cells(10), *same_function(1)]
    names = "sigeo,zico,snip,fisher_trace,gradsign,params"
    alone = scores_of(ranked(archs, tmp_path, names=names))
    (tmp_path / "b").mkdir()
    groups = []
    original = Networks.score_many

    def counted(self, archs, chosen):
        groups.append(len(archs))
        assert {proxy.name for proxy in chosen} == {"sigeo", "zico", "snip", "fisher_trace"}
        if len(groups) == 3:
            raise KeyboardInterrupt
        return original(self, archs, chosen)

    monkeypatch.setattr(Networks, "score_many", counted)
    with pytest.raises(KeyboardInterrupt):
        ranked(archs, tmp_path / "b", names=names, at_once=4)
    together = scores_of(ranked(archs, tmp_path / "b", names=names, at_once=4))
    assert groups[:3] == [4, 4, groups[3]], "two groups were kept, the third is taken up again"
    assert len(groups) == 4
    for arch, scores in alone.items():
        for name, value in scores.items():
            assert together[arch][name] == pytest.approx(value, rel=1e-4), (name, arch)


@pytest.mark.parametrize(("together", "expected"), [(1.0, 16), (3.0, 1)])
def test_many_are_measured_where_there_are_enough(tmp_path, monkeypatch, together, expected):
    from sigeo.scoring import networks as module

    measured = []

    def routes(supernet, archs, batches, proxies):
        assert [proxy.name for proxy in proxies] == ["sigeo", "zico"]
        measured.append(len(archs))
        return module.Routes(together, 2.0)

    monkeypatch.setattr(module, "measure_routes", routes)
    made = Networks(space(), DIGITS, protocol(at_once="auto"), folder=tmp_path)
    assert made.choose_at_once(cells(20)) == (1, None) and not measured
    assert made.choose_at_once(cells(64)) == (expected, module.Routes(together, 2.0))
    assert made.choose_at_once([]) == (1, None)
    assert measured == [module.MEASURED]
    monkeypatch.setattr(module, "available_bytes", lambda device: 1)
    assert made.choose_at_once(cells(64)) == (1, None), "what does not fit is not measured"
    one_by_one = Networks(space(), DIGITS, protocol("params,synflow", at_once="auto"))
    assert one_by_one.choose_at_once(cells(64)) == (1, None)


@pytest.mark.parametrize("names", ["zico", "zico_sample", "zico,fisher_trace"])
def test_measured_routes_leave_the_weights_alone(names):
    made = Networks(space(), DIGITS, protocol(names, at_once="auto"))
    before = {name: value.clone() for name, value in made._module.state_dict().items()}
    routes = made.choose_at_once(cells(64))[1]
    assert routes.together > 0 and routes.apart > 0
    assert all(torch.equal(v, before[n]) for n, v in made._module.state_dict().items())
    assert all(p.grad is None for p in made._module.parameters())
