"""What stands in an endpoint's row stands nowhere else in the package, so that a new endpoint is one row."""

import ast
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async._api.endpoints import ENDPOINTS, LIST, READ, SEND, Endpoint
from feishu_mail_async.oauth import SCOPES
from feishu_mail_async.sandbox import judge, paths
from tests.helpers.samples import PACKAGE

ELSEWHERE = {"_api/endpoints.py", "codes/rows.py"}
"""The rows; and the advice to people at the codes, which is below them."""


def texts(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("value", sorted({row.scope for row in ENDPOINTS.values()} | {"/open-apis/mail/"}))
def test_no_scope_and_no_path_of_an_endpoint_stands_beside_its_row(value: str) -> None:
    # The sandbox has a table of its own: a judge does not read the defendant's papers.
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    found = {name for name, path in files.items() if any(value in text for text in texts(path))}
    assert {name for name in found if not name.startswith("sandbox/")} - ELSEWHERE == set()
    assert "_api/endpoints.py" in found


def test_a_login_asks_for_the_scopes_of_all_endpoints() -> None:
    assert {row.scope for row in ENDPOINTS.values()} <= set(SCOPES)
    assert len(set(SCOPES)) == len(SCOPES)
    assert SCOPES[:2] == (SEND.scope, LIST.scope)


@pytest.mark.parametrize("endpoint", list(ENDPOINTS.values()), ids=list(ENDPOINTS))
def test_a_row_is_what_the_sandbox_judges_by(endpoint: Endpoint[Any]) -> None:
    call = paths.read_call(endpoint.method, endpoint.url(mailbox="a/b@x", draft_id="d?1"))
    assert call is not None
    assert (call.endpoint, call.mailbox) == (endpoint.name, "a/b@x")
    assert call.draft_id == ("d?1" if "{draft_id}" in endpoint.path else None)
    assert endpoint.scope == judge._SCOPES[endpoint.name]
    assert endpoint.writes == (endpoint.name in judge._WRITES)
    if endpoint is not SEND:
        assert (endpoint.limit.calls, endpoint.limit.per) == judge._SIBLING_LIMITS[endpoint.name]


def test_every_row_has_a_name_of_its_own() -> None:
    assert [endpoint.name for endpoint in ENDPOINTS.values()] == list(ENDPOINTS)
    assert READ in ENDPOINTS.values()
