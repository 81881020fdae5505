"""The drawings of a graph: what they show, and that no name can spoil them."""

import html
import io
import json
import random
import re
from collections.abc import Callable, Sequence

import pytest

from taskiq_flow import DAGBuilder, Product
from taskiq_flow.dataflow import render
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from tests.dataflow.graphs import graph, node, task

HOSTILE = [
    'say "hi"',
    "back\\slash\\",
    "[a](b){c}|d| --> n1;",
    "<b>bold</b> & co &lt; #35;",
    "two\nlines\r\tand \x1b[31mred",
    "end",
    "naïve 数据 😀",
    "\u202edesrever",
    "lone \ud800 surrogate",
    "a, b … c?",
    "*a* + `b`",
    "",
    "x" * 500,
    "数" * 500,
]
WIDTH = 100


def load(path: str, rate: int = 16000) -> None:
    pass


def audio() -> DAG:
    return graph(
        DAGNode(load, output="raw"),
        node("clean", "raw"),
        node("stats", "raw"),
        node("join", "clean", "stats"),
        node("report", "join", "title"),
        edges=[("load", "report")],
    )


def fan(width: int) -> DAG:
    parts = [f"part_{index}" for index in range(width)]
    return graph(node("split"), *(node(part, "split") for part in parts), node("merge", *parts))


def layered(count: int, width: int, most: int, seed: int = 1) -> DAG:
    """Levels of ``width``; each node takes data of up to ``most`` of the two levels before."""
    chance = random.Random(seed)
    names = [f"node_{index}" for index in range(count)]
    nodes, edges = [], []
    for index, name in enumerate(names):
        level = index // width
        before = names[max(0, level - 2) * width : level * width]
        chosen = chance.sample(before, min(len(before), chance.randint(1, most)))
        nodes.append(node(name, *chosen[1:], *(["config"] if chance.random() < 0.1 else [])))
        edges += [(other, name) for other in chosen[:1]]
    return graph(*nodes, edges=edges)


Drawer = Callable[[DAG], str]


def as_text(dag: DAG) -> str:
    return render.to_text(dag.get_parallel_levels(), dag.plan().predecessors)


def draw(dag: DAG, drawer: Drawer = as_text) -> str:
    return drawer(dag)


def columns(line: str) -> int:
    return len(line) + sum(letter == "数" for letter in line)


def read(drawing: str) -> dict[str, dict[str, list[str]]]:
    """Node → clause → names, out of a drawing of simple names, with ranges spelled out."""
    rows: dict[str, str] = {}
    for line in drawing.splitlines()[2:]:
        if found := re.match(r" *\d* [─┬├└]─ (\w+)(.*)", line):
            rows[found[1]] = found[2]
        elif line:
            rows[next(reversed(rows))] += " " + line.strip("│ ")
    order = list(rows)

    def names(item: str) -> Sequence[str]:
        if ends := re.fullmatch(r"(\w+) … (\w+) \((\d+)\)", item):
            between = order[order.index(ends[1]) : order.index(ends[2]) + 1]
            assert len(between) == int(ends[3])
            return between
        return [item]

    clauses = {}
    for name, row in rows.items():
        words = re.split(r"(?:^| )(←|after|takes|gives) ", re.sub(" +", " ", row))
        clauses[name] = {
            word: [one for item in items.strip().split(", ") for one in names(item)]
            for word, items in zip(words[1::2], words[2::2], strict=True)
        }
    return clauses


def edges(dag: DAG) -> set[tuple[str, str]]:
    return {(before.task_name, after.task_name) for before, after in dag.edges}


def test_a_whole_drawing() -> None:
    assert draw(audio()).splitlines() == [
        "nodes: 5, edges: 6, levels: 4",
        "",
        "0 ── load    takes path, rate?  gives raw",
        "1 ┬─ clean   ← load",
        "  └─ stats   ← load",
        "2 ── join    ← clean, stats",
        "3 ── report  ← join  after load  takes title",
    ]


def test_unconnected_parts_stand_below_each_other_and_single_nodes_last() -> None:
    dag = graph(
        node("alone"),
        node("a"),
        node("c"),
        node("b", "a"),
        node("d", "c"),
        node("e", "c"),
        node("too"),
    )
    assert draw(dag).splitlines() == [
        "nodes: 7, edges: 3, levels: 2",
        "",
        "0 ── a",
        "1 ── b      ← a",
        "",
        "0 ── c",
        "1 ┬─ d      ← c",
        "  └─ e      ← c",
        "",
        "0 ┬─ alone",
        "  └─ too",
    ]


def test_parts_that_meet_late_are_one() -> None:
    dag = graph(node("a"), node("b"), node("c", "a", "b"))
    assert draw(dag).splitlines()[2:] == ["0 ┬─ a", "  └─ b", "1 ── c  ← a, b"]


def test_an_empty_graph_can_be_drawn() -> None:
    assert draw(graph()) == "an empty graph"
    assert draw(graph(), DAG.to_mermaid) == "flowchart LR"
    assert draw(graph(), DAG.to_dot).endswith("}")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("count", "width", "most"), [(12, 3, 3), (60, 10, 4), (60, 20, 25)])
def test_every_node_and_edge_can_be_read_off_the_text(
    count: int, width: int, most: int, seed: int
) -> None:
    dag = layered(count, width, most, seed)
    rows = read(draw(dag))
    assert sorted(rows) == sorted(one.task_name for one in dag.nodes)
    drawn = {(at, name) for name, row in rows.items() for at in row.get("←", ())}
    ordered = {(at, name) for name, row in rows.items() for at in row.get("after", ())}
    assert drawn | ordered == edges(dag)
    assert ordered == {(at, name) for at, name in edges(dag) if at not in dag.get_node(name).inputs}
    assert {name for name, row in rows.items() if row.get("takes") == ["config"]} == {
        one.task_name for one in dag.nodes if "config" in one.inputs
    }


def test_neighbours_are_drawn_as_a_range() -> None:
    assert draw(fan(58)).endswith("2 ── merge    ← part_0 … part_57 (58)")


def test_a_range_does_not_reach_over_a_level_or_a_gap() -> None:
    names = [f"n{index}" for index in range(10)]
    dag = graph(
        *map(node, names[:4]),
        *(node(name, *names[:4]) for name in names[4:]),
        node("last", *(name for name in names if name != "n7")),
    )
    assert draw(dag).endswith("2 ── last  ← n0, n1, n2, n3, n4, n5, n6, n8, n9")


def test_a_very_long_list_says_how_many_are_left_out() -> None:
    drawing = draw(graph(node("all", outputs=[f"key_{index}" for index in range(1000)])))
    assert drawing.endswith("key_29, … and 970 more")
    names = [f"n{index}" for index in range(100)]
    scattered = draw(graph(*map(node, names), node("all", *names), node("odd", *names[1::2])))
    assert scattered.endswith("n57, n59, … and 20 more")


@pytest.mark.parametrize(
    "dag",
    [fan(998), layered(1000, 100, 60), layered(1000, 1, 2), graph(*map(node, HOSTILE))],
    ids=["fan", "dense", "long", "hostile"],
)
def test_no_line_is_wider_than_the_page(dag: DAG) -> None:
    for width in (WIDTH, 40):
        assert max(map(columns, dag.to_text(width=width).splitlines())) <= width


def test_a_list_that_is_wrapped_goes_on_below_its_first_name() -> None:
    names = [f"a_very_long_name_{index}" for index in range(5)]
    dag = graph(*map(node, names), node("second", *names), node("third", names[0]))
    assert draw(dag).splitlines()[-3:] == [
        "1 ┬─ second              ← a_very_long_name_0, a_very_long_name_1, a_very_long_name_2,",
        "  │                        a_very_long_name_3, a_very_long_name_4",
        "  └─ third               ← a_very_long_name_0",
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_on_its_line(name: str) -> None:
    dag = graph(node(name, "in " + name), node("after it", name), edges=[(name, "after it")])
    drawing = draw(dag)
    assert len(drawing.splitlines()) <= 6
    assert drawing.replace("\n", "").isprintable()
    drawing.encode()


def test_a_name_that_could_be_misread_is_quoted() -> None:
    dag = graph(node("a, b"), node("c?"), node(""), node("d", "a, b", "c?", ""))
    assert draw(dag).endswith("1 ── d       ← 'a, b', 'c?', ''")


def test_names_of_wide_letters_keep_the_columns() -> None:
    dag = graph(node("数据", "x"), node("plain", "x"))
    first, second = draw(dag).splitlines()[2:]
    assert (first, second) == ("0 ┬─ 数据   takes x", "  └─ plain  takes x")


def test_a_mermaid_chart() -> None:
    assert [line.strip() for line in draw(audio(), DAG.to_mermaid).splitlines()] == [
        "flowchart LR",
        'i0(["path"])',
        'i1(["rate"])',
        'i2(["title"])',
        'n0["load"]',
        'n1["clean"]',
        'n2["stats"]',
        'n3["join"]',
        'n4["report"]',
        "i0 --> n0",
        'i1 -->|"optional"| n0',
        'n0 -->|"raw"| n1',
        'n0 -->|"raw"| n2',
        "n1 --> n3",
        "n2 --> n3",
        "i2 --> n4",
        "n3 --> n4",
        "n0 -.-> n4",
    ]


def test_a_dot_graph() -> None:
    drawing = draw(audio(), DAG.to_dot)
    assert [line.strip() for line in drawing.splitlines()] == [
        "digraph {",
        "rankdir=LR",
        "node [shape=box]",
        'i0 [label="path", shape=ellipse]',
        'i1 [label="rate", shape=ellipse]',
        'i2 [label="title", shape=ellipse]',
        'n0 [label="load"]',
        'n1 [label="clean"]',
        'n2 [label="stats"]',
        'n3 [label="join"]',
        'n4 [label="report"]',
        "i0 -> n0",
        'i1 -> n0 [label="optional"]',
        'n0 -> n1 [label="raw"]',
        'n0 -> n2 [label="raw"]',
        "n1 -> n3",
        "n2 -> n3",
        "i2 -> n4",
        "n3 -> n4",
        "n0 -> n4 [style=dashed]",
        "}",
    ]


@pytest.mark.parametrize(
    ("drawer", "ordering", "data"),
    [(DAG.to_mermaid, "n0 -.-> n1", "n0 --> n1"), (DAG.to_dot, "dashed", "n0 -> n1")],
    ids=["mermaid", "dot"],
)
def test_an_edge_is_an_ordering_only_if_no_data_flows(
    drawer: Drawer, ordering: str, data: str
) -> None:
    both = [("a", "b")]
    assert ordering in draw(graph(node("a"), node("b"), edges=both), drawer)
    with_data = draw(graph(node("a"), node("b", "a"), edges=both), drawer)
    assert ordering not in with_data
    assert with_data.count(data) == 1


@pytest.mark.parametrize(
    ("drawer", "node_line", "edge_line"),
    [
        (DAG.to_mermaid, r'n(\d+)\["(.*)"\]', r'n(\d+) (?:-->|-\.->)(?:\|"[^"]*"\|)? n(\d+)'),
        (DAG.to_dot, r'n(\d+) \[label="(.*)"\]', r"n(\d+) -> n(\d+)(?: \[.*\])?"),
    ],
    ids=["mermaid", "dot"],
)
def test_every_node_and_edge_is_in_the_diagram(
    drawer: Drawer, node_line: str, edge_line: str
) -> None:
    dag = layered(60, 10, 4)
    lines = [line.strip() for line in draw(dag, drawer).splitlines()]
    nodes = {found[1]: found[2] for line in lines if (found := re.fullmatch(node_line, line))}
    arrows = [found for line in lines if (found := re.fullmatch(edge_line, line))]
    assert sorted(nodes.values()) == sorted(one.task_name for one in dag.nodes)
    assert len(arrows) == len(dag.edges)
    assert {(nodes[found[1]], nodes[found[2]]) for found in arrows} == edges(dag)


def printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_mermaid_label_says_the_name_and_holds_no_syntax(name: str) -> None:
    dag = graph(node(name), node("other", name, "in " + name, outputs=["x " + name]))
    drawing = draw(dag, DAG.to_mermaid)
    labels = re.findall(r'\w\(?\["([\w #;.\-\u0080-\U0010ffff]*)"\]', drawing)
    said = [html.unescape(label.replace("#", "&#")) for label in labels]
    assert said == ["in " + printable(name), printable(name) or " ", "other"]
    assert len(drawing.splitlines()) == 6
    drawing.encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_dot_label_says_the_name_and_does_not_end_early(name: str) -> None:
    dag = graph(node(name), node("other", name, "in " + name, outputs=["x " + name]))
    drawing = draw(dag, DAG.to_dot)
    labels = re.findall(r'\w \[label="((?:[^"\\]|\\["\\])*)"(?:\]|, shape)', drawing)
    said = [re.sub(r"\\(.)", r"\1", label).replace("&amp;", "&") for label in labels]
    assert said[:3] == ["in " + printable(name), printable(name), "other"]
    assert "&" not in drawing.replace("&amp;", "")
    assert len(drawing.splitlines()) == 9
    drawing.encode()


@pytest.mark.parametrize("drawer", [as_text, DAG.to_mermaid, DAG.to_dot])
def test_keys_are_looked_through_once_per_node_and_not_per_edge(drawer: Drawer) -> None:
    looked_at = 0

    class Counting(DAGNode):
        @property
        def outputs(self) -> list[str]:
            nonlocal looked_at
            keys = super().outputs
            looked_at += len(keys)
            return keys

    keys = [f"key_{index}" for index in range(1000)]
    split = Counting(task, name="split", inputs=[], outputs=keys)
    dag = graph(split, *(node("take_" + key, key) for key in keys))
    dag.plan()
    looked_at = 0
    drawer(dag)
    assert looked_at <= 3 * len(keys)


def test_a_mapped_node_is_drawn_with_the_keys_that_it_maps_over() -> None:
    builder = DAGBuilder().node(len, name="embed", inputs=["pages"], map_over="pages")
    builder.node(lambda vectors: 0, name="norm", inputs=["embed"], map_over="embed")
    builder.node(sum, name="total", inputs=["norm"])
    dag = builder.build()
    stream = io.StringIO()
    dag.print(stream)
    assert stream.getvalue().splitlines()[-3:] == [
        "0 ── embed ×pages  takes pages",
        "1 ── norm ×embed   ← embed",
        "2 ── total         all of norm",
    ]
    assert '"embed #215;pages"' in dag.to_mermaid() or "embed ×pages" in dag.to_mermaid()
    assert 'label="all of norm"' in dag.to_dot()


def test_products_levels_and_what_becomes_of_a_list_are_drawn() -> None:
    builder = DAGBuilder().node(pow, inputs=["xs", "ys"], map_over=Product("xs", "ys"))
    builder.node(list, name="parts", inputs=["pow"], map_over={"pow": 2}, flatten=True)
    builder.node(any, name="some", inputs=["parts"], map_over="parts", filter=True)
    stream = io.StringIO()
    builder.build().print(stream)
    assert stream.getvalue().splitlines()[-3:] == [
        "0 ── pow ×xs ×ys         takes xs, ys",
        "1 ── parts ×pow:2 flat   ← pow",
        "2 ── some ×parts filter  ← parts",
    ]


def is_long(text: str) -> bool:
    return len(text) > 9


def ruled() -> DAG:
    builder = DAGBuilder().node(str.upper, name="short", inputs=["text"], fallback='<"none">')
    builder.node(str.lower, name="long", inputs=["text"], when=is_long, fallback=str.title)
    builder.node(lambda short="", long="": short or long, name="shown", join="any")
    builder.node(lambda shown: shown, name="last", when=lambda shown: shown)
    return builder.build()


def test_join_rules_conditions_and_fallbacks_are_drawn() -> None:
    stream = io.StringIO()
    ruled().print(stream)
    assert stream.getvalue().splitlines()[2:] == [
        "0 ┬─ short  takes text  else '<\"none\">'",
        "  └─ long   takes text  when is_long  else title",
        "1 ── shown  ← short, long  join any",
        "2 ── last   ← shown  when lambda",
    ]


def test_diagrams_have_join_rules_conditions_and_fallbacks_in_their_boxes() -> None:
    dag = ruled()
    dot = dag.to_dot()
    assert '[label="long (when is_long, else title)"]' in dot
    assert '[label="shown (join any)"]' in dot
    mermaid = html.unescape(re.sub(r"#(\d+);", r"&#\1;", dag.to_mermaid()))
    assert '["long (when is_long, else title)"]' in mermaid
    assert '["last (when lambda)"]' in mermaid


def test_a_condition_or_a_fallback_without_a_name_is_drawn_with_its_class() -> None:
    class Always:
        def __call__(self, text: str) -> bool:
            return True

    dag = DAGBuilder().node(str.upper, name="up", inputs=["text"], when=Always()).build()
    assert "(when Always)" in dag.to_dot()


def test_a_fallback_that_is_long_is_cut() -> None:
    dag = DAGBuilder().node(len, name="size", inputs=["x"], fallback=[*range(10**6)]).build()
    assert len(dag.to_dot()) < 200


def test_a_mermaid_chart_can_go_from_top_to_bottom() -> None:
    assert audio().to_mermaid("TB").startswith("flowchart TB\n")
    assert audio().to_mermaid("TB").splitlines()[1:] == audio().to_mermaid().splitlines()[1:]


def test_a_graph_as_json() -> None:
    builder = DAGBuilder().node(len, name="embed", inputs=["pages"], map_over="pages")
    builder.node(sum, name="lone \udc80", inputs=["embed"], fallback=0, outputs=["total"])
    dag = builder.build()
    dag.add_node(node("last"))
    dag.add_edge("lone \udc80", "last")
    text = dag.to_json()
    text.encode()
    data = json.loads(text)
    assert [(one["id"], one["task"], one["mapped"], one["rules"]) for one in data["nodes"]] == [
        ("embed", "len", "×pages", []),
        ("lone \udc80", "sum", "", ["else 0"]),
        ("last", "task", "", []),
    ]
    assert [(one["inputs"], one["outputs"]) for one in data["nodes"]] == [
        *((["pages"], ["embed"]), (["embed"], ["total"]), ([], ["last"])),
    ]
    assert data["edges"] == [
        {"from": "embed", "to": "lone \udc80", "keys": ["embed"]},
        {"from": "lone \udc80", "to": "last", "keys": []},
    ]


def test_failures_that_a_node_takes_are_drawn_from_the_node_that_fails() -> None:
    """They are no inputs of the run."""
    builder = DAGBuilder().node(len, name="read", inputs=["pages"], map_over="pages")
    inputs = {"rows": "read", "failures": "read.failures", "odd": "x.failures"}
    builder.node(lambda rows=(), failures=(), odd=(): 0, name="total", inputs=inputs, join="ended")
    builder.node(
        lambda failures: 0, name="alarm", inputs={"failures": "total.failures"}, join="ended"
    )
    dag = builder.build()
    assert dag.to_text().splitlines()[2:] == [
        "0 ── read ×pages  takes pages",
        "1 ── total        all of read  failures of read  takes x.failures?  join ended",
        "2 ── alarm        failures of total  join ended",
    ]
    assert re.findall('label="(.*)", shape=ellipse', dag.to_dot()) == ["pages", "x.failures"]
    assert '    n0 -> n1 [label="all of read, read.failures"]' in dag.to_dot().splitlines()
    assert '    n1 -->|"total.failures"| n2' in dag.to_mermaid().splitlines()
    assert json.loads(dag.to_json())["edges"] == [
        {"from": "read", "to": "total", "keys": ["read", "read.failures"]},
        {"from": "total", "to": "alarm", "keys": ["total.failures"]},
    ]
