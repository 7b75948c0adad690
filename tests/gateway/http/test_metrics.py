"""Metrics are labelled by route, never by text from a client."""

from __future__ import annotations

from tests.gateway.conftest import Start


def test_requests_are_counted_by_route_and_never_by_client_text(start: Start) -> None:
    served = start()
    opened = served.open()
    opened.chat()
    for path in ("/nothing/here/at/all", f"/{opened.uid}/other/v1/models", "/v1/models/gpt-5"):
        served.client.get(path)
    page = served.client.get("/metrics").text
    assert opened.uid not in page and "gpt-5" not in page and "nothing" not in page
    of_chat = 'midstream_requests_total{route="/{trajectory_uid}/{prompt_uid}/v1/chat/completions",status="200"}'
    assert served.metric(of_chat) == 1
    assert served.metric('midstream_requests_total{route="none",status="404"}') == 1
