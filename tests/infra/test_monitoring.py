"""Prometheus, its rules and the dashboard read metrics that a run has, and no others."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import promql_parser
import pytest
import yaml

from jala_ray.parsing import override
from jala_ray.training.gauges import ALL, RUN_TAG
from tests.infra.cluster_files import INFRA, PART_OF, ROOT, Tree, cluster_spec, container, pods
from tests.ray_start import local_ray
from tests.training.run import make_run, run_config
from tests.training.test_pushing import until

KNOWN = {metric.seen_as for metric in ALL}
NAME = re.compile(r"\bray_jala_\w+")
FUNCTIONS = {"time", "increase", "rate", "changes", "avg_over_time", "last_over_time"}


def read(name: str) -> Tree:
    return yaml.safe_load((INFRA / "monitoring" / name).read_text())


def rules() -> list[Tree]:
    [group] = read("rules.yml")["groups"]
    return group["rules"]


def panels() -> list[Tree]:
    return json.loads((INFRA / "monitoring/dashboard.json").read_text())["panels"]


def queries() -> dict[str, str]:
    """Where it stands -> PromQL; the dashboard's variable by a run's name."""
    drawn = {f"{p['title']} {t['refId']}": t["expr"].replace("$run", "my_run") for p in panels() for t in p["targets"]}
    return drawn | {rule["alert"]: rule["expr"] for rule in rules()}


@pytest.mark.parametrize(("place", "query"), queries().items())
def test_queries_are_promql_over_metrics_that_exist(place: str, query: str) -> None:
    parsed = promql_parser.parse(query)
    assert parsed is not None
    named = set(NAME.findall(query))
    assert named and named <= KNOWN
    assert set(re.findall(r"\b([a-z_]+)\(", query)) - {"by", "sum", "max"} <= FUNCTIONS


def test_the_parser_refuses_what_is_none() -> None:
    with pytest.raises(ValueError):
        promql_parser.parse("max by (run (ray_jala_step)")


def test_every_metric_is_drawn_or_watched() -> None:
    assert {name for query in queries().values() for name in NAME.findall(query)} == KNOWN


def test_rules_are_whole_and_the_operator_s_are_the_same() -> None:
    assert read("prometheusrule.yaml")["spec"]["groups"] == read("rules.yml")["groups"]
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule["for"]) and rule["labels"]["severity"] in ("warning", "critical")
        assert f"$labels.{RUN_TAG} " in rule["annotations"]["summary"]
        for page in re.findall(r"[\w/]+\.md", rule["annotations"]["description"]):
            assert (ROOT / "docs" / page.removeprefix("docs/")).is_file(), page
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 8


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    board = json.loads((INFRA / "monitoring/dashboard.json").read_text())
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert names == {"datasource", "run"} and board["uid"] and board["schemaVersion"] >= 36
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}" and 'run=~"$run"' in panel["targets"][0]["expr"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_pods_are_found_by_what_they_bear() -> None:
    monitor = read("podmonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"] == PART_OF
    [endpoint] = monitor["podMetricsEndpoints"]
    for template in pods(cluster_spec()).values():
        assert endpoint["port"] in {port["name"] for port in container(template)["ports"]}
    [job] = read("prometheus.yml")["scrape_configs"]
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE as LISTED

    assert job["file_sd_configs"] == [{"files": [f"/tmp/ray/{LISTED}"]}]
    assert all((INFRA / "monitoring" / name).is_file() for name in read("prometheus.yml")["rule_files"])


def test_the_guide_lists_every_metric_with_its_meaning() -> None:
    table = (ROOT / "docs/guides/operations.md").read_text()
    for metric in ALL:
        assert f"| `{metric.seen_as}` | {metric.meaning} |" in table, metric
    assert set(NAME.findall(table)) <= KNOWN


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_rows_of_a_run_are_in_ray_s_exposition(tmp_path: Path) -> None:
    """A run's task with the gauges that `launch` gives it, in a process of Ray's; Prometheus would read the same page."""
    import ray

    from jala_ray.training.exported import noting, run_gauges
    from jala_ray.training.trainer import train

    with local_ray():
        [node] = ray.nodes()
        page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        config = override(run_config(tmp_path), {"train.steps": 4})
        gauges, task = run_gauges(config, 4, 1, 2), make_run(config, bad=frozenset({1, 2}))
        task.publish, task.committed = gauges.row, noting(lambda row, address: None, gauges)
        row = train(task)
        seen: dict[str, float] = {}

        def exposed() -> bool:
            text = urllib.request.urlopen(page, timeout=30).read().decode()
            seen.update(
                {
                    n: float(v)
                    for n, v in re.findall(r'^(ray_jala_\w+)\{[^}]*run="run"[^}]*\} (\S+)$', text, re.MULTILINE)
                }
            )
            return seen.get("ray_jala_step") == 4.0 and "ray_jala_rows_total" in seen

        assert until(exposed, 120), seen
    assert seen["ray_jala_steps_planned"] == 4 and seen["ray_jala_loss"] == pytest.approx(row["loss"], rel=1e-6)
    assert seen["ray_jala_rows_quarantined_total"] >= 1
    assert seen["ray_jala_saved_time_seconds"] >= seen["ray_jala_row_time_seconds"] - 1
    absent = {
        "ray_jala_mfu_ratio",
        "ray_jala_straggler_ratio",
        "ray_jala_rank_balance_ratio",
        "ray_jala_steps_empty_total",
    }
    assert seen.keys() & KNOWN >= KNOWN - absent
