"""Who gets to see a page: names, tokens, proxies, forms."""

from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings.http import HttpSettings, HttpToken, Role
from dicomnode.settings.node import Settings, parse_http, read_settings
from dicomnode.web.access import MOST_WRONG_TOKENS, PAUSE, WrongTokens
from dicomnode.web.app import PageRoute, create_app
from tests.support.web import Clock, Web, form_token

OPERATOR, VIEWER, SCRAPER = "o" * 20, "v" * 20, "m" * 20


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> tuple[HttpToken, ...]:
    for name, secret in (("OPERATOR", OPERATOR), ("VIEWER", VIEWER), ("SCRAPER", SCRAPER)):
        monkeypatch.setenv(name, secret)
    return (
        HttpToken(name="boss", role="operate", patients=True, env="OPERATOR"),
        HttpToken(name="ward", role="view", env="VIEWER"),
        HttpToken(name="prometheus", role="metrics", env="SCRAPER"),
    )


def sign_in(client: TestClient, secret: str) -> Any:
    token = form_token(client.get("/login").text)
    return client.post("/login", data={"form_token": token, "token": secret})


@pytest.mark.parametrize(
    ("http", "said"),
    [
        ({"bind": "0.0.0.0"}, "nothing asks them who they are"),
        ({"bind": "192.0.2.1"}, "nothing asks them who they are"),
        ({"bind": "::"}, "nothing asks them who they are"),
        ({"bind": "0.0.0.0", "allow_unencrypted": True}, "nothing asks them who they are"),
        ({"bind": "0.0.0.0", "tokens": [{"name": "a", "env": "TOKEN"}]}, "unencrypted"),
    ],
)
def test_a_page_that_others_could_open_or_read_is_refused(http: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_settings(None, {"http": http}).http.require_safe()


@pytest.mark.parametrize(
    "http",
    [
        {},
        {"bind": "127.0.0.9"},
        {"bind": "::1"},
        {"bind": "localhost"},
        {"bind": "0.0.0.0", "tokens": [{"name": "a", "env": "TOKEN"}], "allow_unencrypted": True},
        {"bind": "0.0.0.0", "tokens": [{"name": "a", "env": "TOKEN"}], "certificate": "c.pem"},
        {"bind": "0.0.0.0", "proxy_user_header": "Remote-User", "proxy_networks": ["10.0.0.1/32"]},
    ],
)
def test_a_page_for_this_machine_or_with_secrets_and_tls_is_served(http: dict[str, Any]) -> None:
    read_settings(None, {"http": http}).http.require_safe()


@pytest.mark.parametrize(
    ("http", "said"),
    [
        ({"key": "k.pem"}, "key without certificate"),
        ({"proxy_user_header": "Remote-User"}, "go together"),
        ({"proxy_operators": ["anna"]}, "need proxy_user_header"),
        ({"tokens": [{"name": "a"}]}, "needs either file or env"),
        ({"tokens": [{"name": "a", "env": "A", "file": "f"}]}, "needs either file or env"),
        ({"tokens": [{"name": "a", "env": "A"}, {"name": "a", "env": "B"}]}, "same name"),
        ({"tokens": [{"name": "a", "env": "A"}], "local_patients": True}, "patients = true"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(http: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_settings(None, {"http": http})


@pytest.mark.parametrize("secret", ["", "short", "x" * 600, "käse" * 10])
def test_a_token_that_is_missing_or_weak_is_refused_and_not_quoted(
    secret: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(secret)
    with pytest.raises(ConfigurationError, match="16 to 512") as refusal:
        HttpToken(name="a", file=tmp_path / "token").read()
    assert not secret or secret not in str(refusal.value)


def test_an_address_on_the_command_line() -> None:
    assert parse_http("off") == {"enabled": False}
    assert parse_http("9090") == {"enabled": True, "port": 9090}
    assert parse_http("[::1]:80") == {"enabled": True, "bind": "::1", "port": 80}
    assert parse_http("127.0.0.2:0") == {"enabled": True, "bind": "127.0.0.2", "port": 0}
    with pytest.raises(ConfigurationError, match="neither"):
        parse_http("nonsense")


def test_without_tokens_this_machine_may_look_and_operate(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        answer = web.client.get("/")
    assert answer.status_code == 200
    assert "Overview" in answer.text


@pytest.mark.parametrize(
    "host", ["evil.example.org", "127.0.0.1.evil.example.org", "evil.example.org:8080", "", "[", "a b"]
)
def test_a_name_that_is_not_the_nodes_is_refused(tmp_path: Path, host: str) -> None:
    with Web(tmp_path) as web:
        assert web.client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8080", "LOCALHOST", "127.0.0.1:8080", "[::1]:8080", "cxr.example.org"])
def test_addresses_and_configured_names_are_the_nodes(tmp_path: Path, host: str) -> None:
    with Web(tmp_path, http=HttpSettings(host_names=("cxr.example.org",))) as web:
        assert web.client.get("/", headers={"host": host}).status_code == 200


def test_a_proxy_in_front_of_an_open_page_is_refused(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        answer = web.client.get("/", headers={"x-forwarded-for": "192.0.2.7"})
    assert answer.status_code == 403
    assert "proxy_user_header" in answer.text


def test_every_answer_carries_the_security_headers(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        answers = [web.client.get(path) for path in ("/", "/absent", "/static/page.css", "/login")]
        answers.append(web.client.get("/", headers={"host": "evil.example.org"}))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
    assert answers[0].headers["cache-control"] == "no-store"


def test_with_tokens_nothing_is_shown_before_one_is_given(tmp_path: Path, tokens: tuple[HttpToken, ...]) -> None:
    with Web(tmp_path, http=HttpSettings(tokens=tokens)) as web:
        sent_away = web.client.get("/", headers={"accept": "text/html"}, follow_redirects=False)
        assert (sent_away.status_code, sent_away.headers["location"]) == (303, "/login")
        assert web.client.get("/", headers={"accept": "*/*"}).status_code == 401
        assert "not known here" in sign_in(web.client, "wrong" * 5).text
        assert web.client.get("/", headers={"accept": "*/*"}).status_code == 401
        before = web.client.cookies["cxrnode"]
        assert "Overview" in sign_in(web.client, VIEWER).text
        assert web.client.cookies["cxrnode"] != before
        page = web.client.get("/").text
        assert "Sign out" in page
        web.client.post("/logout", data={"form_token": form_token(page)})
        assert web.client.get("/", headers={"accept": "*/*"}).status_code == 401


def test_a_token_in_the_request_opens_what_its_role_may(tmp_path: Path, tokens: tuple[HttpToken, ...]) -> None:
    with Web(tmp_path, http=HttpSettings(tokens=tokens)) as web:
        statuses = [
            web.client.get("/", headers={"authorization": f"Bearer {secret}"}).status_code
            for secret in (OPERATOR, VIEWER, SCRAPER, "wrong" * 5)
        ]
    assert statuses == [200, 200, 403, 401]


def test_guessing_tokens_ends_in_a_pause_and_in_the_log(
    tmp_path: Path, tokens: tuple[HttpToken, ...], caplog: pytest.LogCaptureFixture
) -> None:
    def ask(secret: str) -> Any:
        return web.client.get("/", headers={"authorization": f"Bearer {secret}"})

    with Web(tmp_path, http=HttpSettings(tokens=tokens), address="192.0.2.7") as web:
        assert ask(OPERATOR).status_code == 200
        answers = [ask(f"{number:020}") for number in range(300)]
        assert [answer.status_code for answer in answers] == [401] * MOST_WRONG_TOKENS + [429] * (
            300 - MOST_WRONG_TOKENS
        )
        assert 1 <= int(answers[-1].headers["retry-after"]) <= PAUSE.total_seconds()
        assert "Too many wrong tokens" in answers[-1].text
        assert ask(OPERATOR).status_code == 429, "a right token is not looked at either"
        assert sign_in(web.client, OPERATOR).status_code == 429
        web.clock.advance(seconds=PAUSE.total_seconds() + 1)
        assert ask(OPERATOR).status_code == 200
    told = [record for record in caplog.records if record.getMessage() == "web-login-refused"]
    assert len(told) == MOST_WRONG_TOKENS
    assert {vars(record)["peer"] for record in told} == {"192.0.2.7"}
    assert vars(told[-1])["paused_s"] > 0
    assert "0" * 18 not in caplog.text, "no token is logged"


def test_a_pause_is_for_one_address_and_for_what_one_client_may_call_its_own() -> None:
    clock = Clock()
    wrong = WrongTokens(clock)
    for number in range(MOST_WRONG_TOKENS):
        wrong.note(f"2001:db8::{number}")
        wrong.note("192.0.2.7")
    assert wrong.pause_s("2001:db8::ffff") > 0
    assert wrong.pause_s("2001:db8:0:1::1") == 0
    assert (wrong.pause_s("192.0.2.7") > 0, wrong.pause_s("192.0.2.8")) == (True, 0)
    clock.advance(minutes=2)
    assert wrong.pause_s("192.0.2.7") == 0


def test_a_session_goes_on_while_its_address_is_paused(tmp_path: Path, tokens: tuple[HttpToken, ...]) -> None:
    with Web(tmp_path, http=HttpSettings(tokens=tokens)) as web:
        sign_in(web.client, VIEWER)
        for _ in range(MOST_WRONG_TOKENS):
            web.site.access.wrong_tokens.note("127.0.0.1")
        assert web.client.get("/").status_code == 200


def test_a_proxy_names_its_users_and_nobody_else_can(tmp_path: Path) -> None:
    http = HttpSettings(
        proxy_user_header="Remote-User",
        proxy_networks=("10.0.0.1/32",),
        proxy_operators=("anna",),
        host_names=("cxr.example.org",),
    )
    named = {"remote-user": "anna", "host": "cxr.example.org", "x-forwarded-for": "192.0.2.7", "accept": "*/*"}
    with Web(tmp_path, http=http, address="10.0.0.1") as web:
        assert web.client.get("/", headers=named).status_code == 200
        assert web.client.get("/", headers={**named, "remote-user": ""}).status_code == 401
    with Web(tmp_path, http=http, address="10.0.0.2") as web:
        assert web.client.get("/", headers=named).status_code == 401


def test_a_session_ends_after_its_time(tmp_path: Path, tokens: tuple[HttpToken, ...]) -> None:
    with Web(tmp_path, http=HttpSettings(tokens=tokens)) as web:
        sign_in(web.client, VIEWER)
        web.clock.advance(hours=11)
        assert web.client.get("/", headers={"accept": "*/*"}).status_code == 200
        web.clock.advance(hours=2)
        assert web.client.get("/", headers={"accept": "*/*"}).status_code == 401


def test_the_cookie_is_for_this_site_and_for_no_script(tmp_path: Path) -> None:
    with Web(tmp_path, http=HttpSettings(certificate=Path("c.pem"))) as web:
        cookie = web.client.get("/").headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Secure"} <= set(cookie.split("; "))


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example.org"}, {"origin": "null"}, {"referer": "https://evil.example.org/testserver"}],
)
def test_a_form_of_another_site_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    with Web(tmp_path) as web:
        assert web.client.post("/logout", data={"form_token": web.form_token()}, headers=headers).status_code == 403


def test_a_form_without_the_sessions_token_is_refused(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        foreign = web.form_token()
        web.client.cookies.clear()
        web.client.get("/")
        for fields in ({}, {"form_token": "x"}, {"form_token": foreign}, {"form_token": "x", "big": "y" * 50_000}):
            assert web.client.post("/logout", data=fields).status_code == 403
        answer = web.client.post(
            "/logout", data={"form_token": web.form_token()}, headers={"origin": "http://127.0.0.1"}
        )
        assert answer.status_code == 200


def test_the_defaults_are_for_this_machine() -> None:
    http = Settings().http
    assert (http.enabled, http.bind, http.port, http.local_patients) == (True, "127.0.0.1", 8080, False)


def test_probes_begin_no_sessions_and_push_nobody_out(tmp_path: Path) -> None:
    async def healthy(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    with Web(tmp_path) as web:
        probed = create_app(web.context, extra=[PageRoute(path="/probe", view=healthy, role=Role.NOBODY)])
        client = TestClient(probed, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
        answer = client.get("/probe")
        assert (answer.status_code, "set-cookie" in answer.headers) == (200, False)
        assert "set-cookie" in client.get("/").headers
        assert "set-cookie" not in client.get("/").headers
        client.close()
