from __future__ import annotations

from pathlib import Path

import pytest

from braid.sim.experts.routes import Route, RouteError, parse_routes, read_routes

HEAD = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"
MODEL = """# route_trace v1
# model=/models/tiny.gguf arch=tiny n_layer=2 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=7
# layer=1 expert_bytes=120 dense_bytes=9
"""
ROWS = """0,0,0,0,0,3,0.75,0,100
0,0,0,0,1,1,0.25,0,100
0,0,1,0,1,1,0.4,0,0
0,0,1,0,0,2,0.6,0,100
0,0,1,1,0,0,1,0,120
0,1,2,0,0,3,0.5,1,0
0,1,2,0,1,0,0.5,0,100
0,1,2,1,0,1,1,1,120
"""


def test_tokens_come_in_order_with_those_layers_that_they_have() -> None:
    routes = parse_routes((MODEL + HEAD + "\n" + ROWS).splitlines(keepends=True))
    assert tuple(routes.shape) == (2, 4, 2)
    assert routes.routes == (
        Route(0, 0, 0, True, (3, 1), (0.75, 0.25)),
        Route(0, 1, 0, True, (2, 1), (0.6, 0.4)),
        Route(0, 1, 1, True, (4,), (1.0,)),
        Route(0, 2, 0, False, (3, 0), (0.5, 0.5)),
        Route(0, 2, 1, False, (5,), (1.0,)),
    )
    assert (routes.model, routes.expert_bytes, routes.dense_bytes) == (
        "/models/tiny.gguf",
        (100, 120),
        (7, 9),
    )
    assert (routes.num_tokens(is_prefill=True), routes.num_tokens(is_prefill=False)) == (2, 1)
    assert routes.distinct() == [4, 2]


def test_a_recording_by_layers_is_put_in_the_order_of_tokens() -> None:
    rows = sorted(ROWS.splitlines(), key=lambda row: row.split(",")[3])
    assert parse_routes([HEAD, *rows]).routes == parse_routes([HEAD, *ROWS.splitlines()]).routes


def test_without_words_on_the_model_it_is_as_large_as_what_is_seen() -> None:
    routes = parse_routes(["phase,step,layer,slot,expert", "", "1,0,1,0,6", "1,0,0,0,2"])
    assert tuple(routes.shape) == (2, 7, 1)
    assert routes.routes == (Route(0, 0, 0, False, (2,), ()), Route(0, 0, 1, False, (13,), ()))
    assert (routes.model, routes.expert_bytes) == ("", ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it holds no routing"),
        (HEAD, "it holds no routing"),
        ("phase,step,expert\n", "line 1: no column layer, slot"),
        (f"{HEAD}\n0,1,2\n", "line 2: 9 values are expected, got 3"),
        (f"{HEAD}\n0,0,0,0,0,x,1,0,0\n", "line 2: expert must be an integer >= 0, got 'x'"),
        (f"{HEAD}\n0,0,-1,0,0,1,1,0,0\n", "line 2: step must be an integer >= 0, got '-1'"),
        (f"{HEAD}\n0,2,0,0,0,1,1,0,0\n", "line 2: phase must be 0 (prefill) or 1 (decode), got 2"),
        (f"{HEAD}\n0,0,0,0,0,1,nan,0,0\n", "line 2: weight must be a number >= 0, got 'nan'"),
        (f'{HEAD}\n0,0,0,0,0,1,"1,0,0\n', "line 2: "),
        (f"{HEAD}\n0,0,0,0,0,1,1,0,0\n0,0,0,0,1,1,1,0,0\n", "line 3: this token and layer has slot 1 or"),
        (f"{HEAD}\n0,0,0,0,0,1,1,0,0\n0,0,0,0,0,2,1,0,0\n", "line 3: this token and layer has slot 0 or"),
        (f"{MODEL}{HEAD}\n0,0,0,2,0,1,1,0,0\n", "line 6: layer must be below 2, got 2"),
        (f"{MODEL}{HEAD}\n0,0,0,1,0,4,1,0,0\n", "line 6: expert must be below 4, got 4"),
        (f"{MODEL}{HEAD}\n" + "".join(f"0,0,0,0,{n},{n},1,0,0\n" for n in range(3)), "line 8: a token has 3 experts"),
        (f"# n_layer=none\n{HEAD}\n{ROWS}", "n_layer must be an integer >= 1, got 'none'"),
        (f"{HEAD}\n0,0,0,999999,0,9999,1,0,0\n", "more than 1,048,576 experts"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(RouteError) as caught:
        parse_routes(text.splitlines(keepends=True))
    assert said in str(caught.value)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(RouteError, match=r"cannot read .*nowhere.csv: No such file"):
        read_routes(tmp_path / "nowhere.csv")
    path = tmp_path / "bad.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RouteError, match=r"bad.csv: it is no text"):
        read_routes(path)
    path.write_text("a,b\n")
    with pytest.raises(RouteError, match=r"bad.csv: line 1: no column"):
        read_routes(path)
