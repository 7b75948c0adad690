"""Pictures show what feeds what."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from tests.workflows import samples

from midstream.workflows import read_workflow
from midstream.workflows.graph import graph_of
from midstream.workflows.picture import write_mermaid, write_svg


def test_edges_are_the_data_that_flows() -> None:
    graph = graph_of(read_workflow(samples.MATH_PROGRAM))
    edges = {(edge.source, edge.target, edge.label): edge for edge in graph.edges}
    assert [node.label for node in graph.nodes] == ["problem", "Programmer", "Custom", "Review", "Revise", "answer"]
    assert ("problem", "n1", "problem") in edges and ("n1", "n2", "input") in edges
    assert ("n3", "n4", "feedback") in edges and ("n4", "answer", "") in edges and ("n2", "answer", "") in edges
    assert edges[("n3", "n4", 'if not checked["review_result"]')].control
    assert graph.as_json()["edges"][0] == {
        "from": "problem", "to": "n1", "label": "problem", "control": False, "back": False
    }  # fmt: skip


def test_a_loop_s_next_round_is_an_edge_back() -> None:
    graph = graph_of(read_workflow(samples.LOOP_UNTIL))
    verify = next(node for node in graph.nodes if node.label == "Verify")
    again = next(node for node in graph.nodes if node.within == ("for attempt in range(3)",) and node != verify)
    assert any(edge.back and (edge.source, edge.target) == (again.id, verify.id) for edge in graph.edges)


@pytest.mark.parametrize("code", samples.ALL.values(), ids=samples.ALL)
def test_every_workflow_can_be_drawn(code: str) -> None:
    workflow = read_workflow(code.replace("Solve it.", "Solve"))
    document = ElementTree.fromstring(write_svg(workflow))
    texts = [element.text for element in document.iter() if element.tag.endswith("text")]
    assert {node.label for node in graph_of(workflow).nodes} <= set(texts)
    mermaid = write_mermaid(workflow)
    assert mermaid.startswith("flowchart TD\n") and "answer" in mermaid


def test_names_of_prompts_cannot_break_out_of_a_picture() -> None:
    code = samples.ROUND_1_QA.replace('instruction=""', "instruction=self.prompts.get('</svg><script>\"|', '')")
    workflow = read_workflow(code)
    assert "<script" not in write_svg(workflow) and "<script" not in write_mermaid(workflow)
    ElementTree.fromstring(write_svg(workflow))
